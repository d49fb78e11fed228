"""An activation is the nonlinearity phi, with its action on a pair of Gaussian signals."""
