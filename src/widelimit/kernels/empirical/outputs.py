"""The outputs of a function are kept apart, traced or paired with themselves only: the forms of an empirical kernel."""

from typing import Literal

Output = Literal["full", "trace", "diagonal"]
OUTPUTS: tuple[Output, ...] = ("full", "trace", "diagonal")
PAIRS = {"full": "nap,mbp->nmab", "trace": "nap,map->nm", "diagonal": "nap,map->nma"}
SELF = {"full": "nap,nbp->nab", "trace": "nap,nap->n", "diagonal": "nap,nap->na"}
