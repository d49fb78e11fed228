"""Equations of the reference, typeset: the first line of a docstring says the same in plain text."""

EQUATIONS = {
    # activations
    "ABRelu": r"\phi(u) = a\,\min(u, 0) + b\,\max(u, 0)",
    "Abs": r"\phi(u) = |u|,\qquad \mathbb{E}[\phi(u)\phi(v)] = \frac{2}{\pi}\, s s' "
    r"\left(\sin\theta + \left(\tfrac{\pi}{2} - \theta\right)\cos\theta\right)",
    "Cos": r"\phi(u) = \cos(a u),\qquad \mathbb{E}[\phi(u)\phi(v)] = e^{-a^2 (s^2 + s'^2)/2} \cosh(a^2 s s' \rho)",
    "Erf": r"\phi(u) = a\,\mathrm{erf}(b u) + c,\qquad \mathbb{E}[\mathrm{erf}(u)\,\mathrm{erf}(v)] = "
    r"\frac{2}{\pi} \arcsin\frac{2 s s' \rho}{\sqrt{(1 + 2 s^2)(1 + 2 s'^2)}}",
    "Exp": r"\phi(u) = a\, e^{b u},\qquad \mathbb{E}[\phi(u)\phi(v)] = a^2 \exp\left(\tfrac{b^2}{2}\, "
    r"\mathbb{E}[(u + v)^2]\right)",
    "Gaussian": r"\phi(u) = a\, e^{-b u^2},\qquad \mathbb{E}[\phi(u)\phi(v)] = "
    r"\frac{a^2}{\sqrt{(1 + 2 b s^2)(1 + 2 b s'^2) - (2 b c)^2}}",
    "Gelu": r"\phi(u) = u\,\Phi(u),\qquad \mathbb{E}[\phi(u)\phi(v)] = \frac{s s'}{2\pi} "
    r"\left(\rho \left(\tfrac{\pi}{2} + \arcsin Z\right) + B\right)",
    "Hermite": r"\phi(u) = \frac{\mathrm{He}_n(u)}{\sqrt{n!}},\qquad \mathbb{E}[\phi(u)\phi(v)] = \rho^n "
    r"\quad (s = s' = 1)",
    "Identity": r"\phi(u) = u,\qquad \mathbb{E}[\phi(u)\phi(v)] = s s' \rho",
    "LeakyRelu": r"\phi(u) = u \;\;(u \ge 0),\qquad \phi(u) = \mathrm{slope}\cdot u \;\;(u < 0)",
    "Monomial": r"\phi(u) = u^n,\qquad \mathbb{E}[\phi(u)\phi(v)] = (s s')^n \sum_j h_j^2 \rho^j,\quad "
    r"h_j = \frac{n!}{2^m\, m!\, \sqrt{j!}},\; j = n - 2m",
    "PiecewisePolynomial": r"\phi(u) = \sum_i \mathrm{pieces}_{k,i}\, u^i \quad\text{for}\quad "
    r"\mathrm{kinks}_{k-1} \le u < \mathrm{kinks}_k",
    "Polynomial": r"\phi(u) = \sum_k a_k u^k,\qquad \mathbb{E}[\phi(u)\phi(v)] = \sum_j h_j(s)\, h_j(s')\, \rho^j",
    "Rbf": r"\phi(u) = \sqrt{2}\,\sin\left(\sqrt{2\gamma}\, u + \tfrac{\pi}{4}\right),\qquad "
    r"\mathbb{E}[\phi(u)\phi(v)] = e^{-\gamma\, \mathbb{E}[(u - v)^2]}",
    "RectifiedPower": r"\phi(u) = \max(u, 0)^p,\qquad \mathbb{E}[\phi(u)\phi(v)] = \frac{(s s')^p J_p(\theta)}{2\pi}",
    "Relu": r"\phi(u) = \max(u, 0),\qquad \mathbb{E}[\phi(u)\phi(v)] = \frac{s s'}{2\pi} "
    r"\left(\sin\theta + (\pi - \theta)\cos\theta\right)",
    "Sign": r"\phi(u) = \mathrm{sign}(u),\qquad \mathbb{E}[\phi(u)\phi(v)] = 1 - \frac{2\theta}{\pi}",
    "Sin": r"\phi(u) = \sin(a u + b),\qquad \mathbb{E}[\phi(u)\phi(v)] = \tfrac12 \left(e^{-\mathbb{E}[(U - V)^2]/2} - "
    r"\cos(2b)\, e^{-\mathbb{E}[(U + V)^2]/2}\right)",
    "Snake": r"\phi(u) = u + \frac{\sin^2(a u)}{a}",
    "Step": r"\phi(u) = 1 \;\;(u > 0),\; 0 \text{ otherwise},\qquad \mathbb{E}[\phi(u)\phi(v)] = "
    r"\frac{\pi - \theta}{2\pi}",
    "elu": r"\phi(u) = \mathrm{scale}\cdot u \;\;(u > 0),\qquad "
    r"\phi(u) = \mathrm{scale}\cdot\alpha\left(e^{u/\mathrm{length}} - 1\right) \;\;(u \le 0)",
    "gaussian_expectation": r"\mathbb{E}[f(u)\, g(v)],\qquad (u, v) \sim \mathcal{N}\left(0, "
    r"\begin{pmatrix} q_1 & c \\ c & q_2 \end{pmatrix}\right)",
    "critical": r"\sigma_w^2\, \mathbb{E}[\phi'(u)^2] = 1,\qquad \sigma_w^2\, \mathbb{E}[\phi(u)^2] + \sigma_b^2 = q,"
    r"\qquad u \sim \mathcal{N}(0, q)",
    "phase": r"\rho \leftarrow \frac{\sigma_w^2\, \mathbb{E}[\phi(u)\phi(v)] + \sigma_b^2}{q^*}",
    # networks
    "mlp": r"f = A \circ (\phi \circ A)^{\mathrm{depth} - 1},\qquad A(a) = \sigma_b\, b + "
    r"\frac{\sigma_w}{\sqrt{\mathrm{width}}}\, W a",
    "resmlp": r"f = A \circ \left(a \mapsto a + c\, A(\phi(a))\right)^{\mathrm{blocks}} \circ A",
    "convnet": r"f = A \circ \mathrm{end} \circ (\phi \circ \mathrm{conv})^{\mathrm{depth}}",
    "myrtle": r"f = A \circ \mathrm{average} \circ (\phi \circ \mathrm{conv})^c \circ \mathrm{pool} \circ "
    r"(\phi \circ \mathrm{conv})^b \circ \mathrm{pool} \circ (\phi \circ \mathrm{conv})^a",
    "resnet": r"f = A \circ \mathrm{end} \circ \phi \circ \mathrm{stages} \circ \mathrm{conv},\qquad "
    r"\mathrm{block}(a) = a + \mathrm{conv}(\phi(\mathrm{conv}(\phi(a))))",
    "gnn": r"f = A \circ \mathrm{readout} \circ \left((\phi \circ A)^{\mathrm{mlp\_layers}} \circ "
    r"\mathrm{aggregate}\right)^{\mathrm{blocks}}",
    "transformer": r"f = A \circ \mathrm{end} \circ \mathrm{blocks} \circ (a \mapsto a + \mathrm{encoding}) \circ A",
    # kernels
    "nngp": r"\Sigma^1(x, x') = \frac{\sigma_w^2}{n_0}\, x^\top x' + \beta^2,\qquad "
    r"\Sigma^{l+1} = \sigma_w^2\, \mathbb{E}[\phi(u)\phi(v)] + \beta^2,\qquad (u, v) \sim \mathcal{N}(0, \Sigma^l)",
    "NNGP": r"\Sigma^L(x, x') = \lim_{n \to \infty} \mathrm{Cov}\left(f(x), f(x')\right)",
    "ntk": r"\Theta^1 = \Sigma^1,\qquad \Theta^{l+1} = \sigma_w^2\, \Theta^l\, \mathbb{E}[\phi'(u)\phi'(v)] + "
    r"\Sigma^{l+1},\qquad (u, v) \sim \mathcal{N}(0, \Sigma^l)",
    "NTK": r"\Theta^L(x, x') = \lim_{n \to \infty} \left\langle \nabla_\theta f(x), \nabla_\theta f(x') \right\rangle",
    "rbf": r"K(x, x') = \exp\left(-\frac{|x - x'|^2}{2\,\ell^2}\right)",
    "RadialBasis": r"K(x, x') = \exp\left(-\frac{|x - x'|^2}{2\,\ell^2}\right)",
    "laplace": r"K(x, x') = \exp\left(-\frac{|x - x'|}{\ell}\right)",
    "Laplace": r"K(x, x') = \exp\left(-\frac{|x - x'|}{\ell}\right)",
    "linear": r"K(x, x') = \varphi(x)^\top \varphi(x')",
    "Linear": r"K(x, x') = \varphi(x)^\top \varphi(x')",
    "polynomial": r"K(x, x') = (x^\top x' + \mathrm{offset})^{\mathrm{degree}}",
    "PolynomialKernel": r"K(x, x') = (x^\top x' + \mathrm{offset})^{\mathrm{degree}}",
    "kernel": r"K(x, x') = \mathrm{function}(x, x')",
    "FunctionKernel": r"K(x, x') = \mathrm{function}(x, x')",
    "precomputed": r"K(i, j) = \mathrm{matrix}_{ij}",
    "Precomputed": r"K(i, j) = \mathrm{matrix}_{ij}",
    "averaged": r"K(x, x') = \frac{1}{|G|^2} \sum_{g, h \in G} k(g x, h x')",
    "Averaged": r"K(x, x') = \frac{1}{|G|^2} \sum_{g, h \in G} k(g x, h x')",
    "Product": r"K(x, x')\, K'(x, x')",
    "Sum": r"K(x, x') + K'(x, x')",
    "MatrixKernel": r"K(x, x') \in \mathbb{R}^{c \times c},\qquad K(x, x')^\top = K(x', x)",
    "separable": r"K(x, x') = k(x, x')\, B",
    "empirical_ntk": r"\Theta(x, x')_{ab} = \sum_p \frac{\partial f_a(x)}{\partial \theta_p} "
    r"\frac{\partial f_b(x')}{\partial \theta_p}",
    "empirical_nngp": r"K(x, x')_{ab} = f_a(x)\, f_b(x')",
    "linearize": r"f_0(x) + \left.\frac{\partial f(x)}{\partial \theta}\right|_{\theta_0} (\theta - \theta_0)",
    # Bayes
    "posterior": r"\mathbb{E}[f(z) \mid y] = K_{zX} (K_{XX} + \mathrm{noise})^{-1} y,\qquad "
    r"\mathrm{Var}[f(z) \mid y] = K_{zz} - K_{zX} (K_{XX} + \mathrm{noise})^{-1} K_{Xz}",
    "GaussianProcess": r"(f(x_1), \ldots, f(x_n)) \sim \mathcal{N}(m(X), K(X, X))",
    "Conditioned": r"K(x, x') - K(x, X)\, (K(X, X) + \mathrm{noise})^{-1} K(X, x')",
    "fit_hyperparameters": r"\hat\vartheta = \arg\max_\vartheta \log p(y \mid X, \vartheta)",
    # descent
    "gradient_flow": r"\frac{\mathrm{d} f_t}{\mathrm{d} t} = -\frac{1}{n} \sum_i K(\cdot, x_i)\, d_i,\qquad "
    r"f_t(X) - y = e^{-2 K(X, X) t/n}\, (f_0(X) - y) \;\text{ for } l = |f - y|^2",
    "GradientFlow": r"\frac{\mathrm{d} f_t}{\mathrm{d} t} = -\frac{2}{n}\, K(\cdot, X)\, (f_t(X) - y)",
    "KrylovFlow": r"\frac{\mathrm{d} f_t}{\mathrm{d} t} = -\frac{2}{n}\, K(\cdot, X)\, (f_t(X) - y)",
    "NumericalFlow": r"\frac{\mathrm{d} f_t}{\mathrm{d} t} = -\frac{1}{n} \sum_i K(\cdot, x_i)\, d_i",
    "Modes": r"C(f_t) = \sum_i \frac{\mathrm{power}_i}{n}\, e^{-4 \lambda_i t/n}",
    "gradient_descent": r"\alpha_{s+1} = \alpha_s - \frac{\eta}{n}\, d(f_s(X)) + \mu\, (\alpha_s - \alpha_{s-1}),\qquad "
    r"f_s = f_0 + K(\cdot, X)\, \alpha_s",
    "GradientDescent": r"f_{s+1} = f_s - \frac{\eta}{n} \sum_i K(\cdot, x_i)\, d_i + \mu\, (f_s - f_{s-1})",
    "max_learning_rate": r"\eta_{\max} = \frac{2\, (1 + \mu)\, n}{\kappa\, \lambda_{\max}(K(X, X))}",
    "LinearModel": r"f(x) = w^\top \varphi(x),\qquad C(w) = \frac{1}{n} \sum_i |w^\top \varphi(x_i) - y_i|^2",
    # losses
    "CustomLoss": r"l(f, y) = \mathrm{function}(f, y)",
    "SquaredError": r"l(f, y) = |f - y|^2,\qquad d = 2\, (f - y)",
    "WeightedSquaredError": r"l_i(f, y) = w_i\, |f_i - y_i|^2,\qquad d = 2 w\, (f - y)",
    "Logistic": r"l(f, y) = \sum \log\left(1 + e^{-y f}\right),\qquad d = \frac{-y}{1 + e^{y f}}",
    "SoftmaxCrossEntropy": r"l(f, y) = \log \sum_k e^{f_k} - \sum_k y_k f_k,\qquad d = \mathrm{softmax}(f) - y",
    "Huber": r"l(f, y) = \sum r^2 \;\;(|r| \le \delta),\quad \delta\, (2 |r| - \delta) \;\text{ beyond},\qquad r = f - y",
    "Poisson": r"l(f, y) = \sum \left(e^{f} - y f\right),\qquad d = e^{f} - y",
    # estimators
    "NNGPRegressor": r"y_j = \mathrm{mean}_j + \mathrm{scale}_j\, (f_j(x) + e),\qquad f_j \sim \mathcal{GP}(0, \Sigma^L),"
    r"\qquad e \sim \mathcal{N}(0, \mathrm{noise}/\mathrm{sample\_weight})",
    "WideRegressor": r"y_j = \mathrm{mean}_j + \mathrm{scale}_j\, (f_j(s\, x) + e),\qquad f_j \sim \mathcal{GP}(0, K),"
    r"\qquad e \sim \mathcal{N}(0, \mathrm{noise}/\mathrm{sample\_weight})",
    "NTKRegressor": r"f_\infty(x) = \Theta(x, X)\, (\Theta(X, X) + \mathrm{noise})^{-1} y",
    "NNGPClassifier": r"p(\text{class } k) = \mathbb{E}[\mathrm{softmax}(f)_k],\qquad "
    r"f_k \sim \mathcal{GP}(\mathrm{offset}, \mathrm{scale}^2\, \Sigma^L)",
    "NTKClassifier": r"p(\text{class } k) = \mathbb{E}[\mathrm{softmax}(f)_k],\qquad "
    r"f_k \sim \mathcal{GP}(\mathrm{offset}, \mathrm{scale}^2\, \Theta^L)",
    "WideClassifier": r"p(\text{class } k) = \sum_j \mathrm{share}_j\, p_j(\text{class } k)",
    "NTKFeatures": r"\varphi(x)^\top \varphi(x') = K(x, L)\, K(L, L)^{+} K(L, x')",
    "CalibrationDisplay": r"\mathrm{coverage}(p) = \frac{\#\{i : |y_i - \mathrm{mean}_i| \le z_p\, \mathrm{std}_i\}}{n},"
    r"\qquad P(|\mathcal{N}(0, 1)| \le z_p) = p",
    "DependenceDisplay": r"f_S(v) = \frac{1}{m} \sum_i f(x_i \text{ with } v \text{ in column } S)",
    # theory, tangents
    "generalization": r"\mathbb{E}|f - y|^2 = \frac{n}{n - \sum L^2} \left(\sum (1 - L)^2 v^2 + s^2\right),\qquad "
    r"L = \frac{\lambda}{\lambda + \kappa},\qquad \sum L + \frac{\mathrm{noise}}{\kappa} = n",
    "finite_width": r"V' = \frac{w^4\, \mathrm{Var}[\phi^2]}{n} + \left(w^2 \frac{\mathrm{d}\,\mathbb{E}[\phi^2]}"
    r"{\mathrm{d} K}\right)^2 V",
    "proportional_posterior": r"n_l (1 - q_l) = \mathrm{tr}\, C^{-1} Q K - y^\top C^{-1} Q K C^{-1} y,\qquad "
    r"C = Q K + F + \mathrm{noise},\qquad Q = \prod_l q_l",
    "Sketch": r"\varphi(x)_a^\top \varphi(x')_b \approx \frac{\partial f_a(x)}{\partial\theta} \cdot "
    r"\frac{\partial f_b(x')}{\partial\theta}",
    "TangentRows": r"K(x, x')_{ab} = \frac{\partial f_a(x)}{\partial\theta} \cdot \frac{\partial f_b(x')}{\partial\theta}",
}
"""TeX of the equation that a public name stands for."""
