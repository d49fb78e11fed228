"""The model for AutoGluon and TabArena, on a stand-in with the calls that AutoGluon's base class makes."""

import importlib
import pathlib
import pickle
import sys
import types

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


class AbstractModel:
    """What AutoGluon's class of this name does with its hooks, in short (autogluon.core 1.6)."""

    ag_key = ag_name = seed_name = None
    _supported_problem_types = None

    def __init__(self, problem_type, hyperparameters=None):
        self.problem_type = problem_type
        self.params, self.model = hyperparameters or {}, None
        self.params_aux = self._get_default_auxiliary_params()

    def fit(self, X, y, **kwargs):
        assert self._estimate_memory_usage(X=X) > 0
        self._fit(X=X, y=y, X_val=None, y_val=None, time_limit=None, num_cpus=1, num_gpus=0, verbosity=2, **kwargs)
        return self

    def predict_proba(self, X):
        return self._predict_proba(X).astype(np.float32)

    @classmethod
    def supported_problem_types(cls):
        return cls._supported_problem_types

    def _get_default_auxiliary_params(self):
        return {"max_rows": None, "valid_raw_types": None}

    def _get_model_params(self):
        return dict(self.params)

    def preprocess(self, X, **kwargs):
        return self._preprocess(X, **kwargs)

    def _preprocess(self, X, **kwargs):
        return X

    def _fit(self, X, y, **kwargs):
        raise NotImplementedError

    def _predict_proba(self, X, **kwargs):
        X = self.preprocess(X, **kwargs)
        return self.model.predict(X) if self.problem_type == "regression" else self.model.predict_proba(X)

    def _estimate_memory_usage(self, X, **kwargs):
        return 1


@pytest.fixture
def wide_model(monkeypatch):
    """WideModel as a subclass of the stand-in."""
    packages = {name: types.ModuleType(name) for name in ("autogluon", "autogluon.core", "autogluon.core.models")}
    packages["autogluon.core.models"].AbstractModel = AbstractModel
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "tabarena_model", raising=False)
    yield importlib.import_module("tabarena_model").WideModel
    sys.modules.pop("tabarena_model", None)


def unknown(model):
    """Methods of a model that AutoGluon never calls: their names are not those of its base class."""
    own = {name for name, value in vars(model).items() if callable(value) or isinstance(value, classmethod)}
    return {name for name in own if not name.startswith("__")} - set(dir(AbstractModel))


def test_every_method_is_one_of_the_interface(wide_model):
    assert unknown(wide_model) == set()
    assert unknown(type("Misspelt", (AbstractModel,), {"_preproces": len, "_fit": len})) == {"_preproces"}
    assert wide_model.ag_key
    assert wide_model.ag_name
    assert wide_model.supported_problem_types() == ["binary", "multiclass", "regression"]


@pytest.mark.parametrize("problem", ["regression", "multiclass"])
def test_a_table_with_missing_values_and_categories(wide_model, problem):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.standard_normal(60), "b": pd.Categorical(rng.choice(["x", "y", "z"], 60))})
    f = X["a"] + 2 * (X["b"] == "x")
    X.loc[::20, "a"] = np.nan
    y = f if problem == "regression" else pd.Series(np.digitize(f, [0, 1.5]))
    settings = {"kernel": "nngp", "activation": "erf", "depth": 2}
    model = wide_model(problem_type=problem, hyperparameters=settings).fit(X[:40], y[:40])
    assert model.params_aux["max_rows"] > 0
    assert model.model.get_params()["kernel"] == "nngp"
    last = X[40:].assign(b=pd.Categorical(["w", *X["b"][41:]]))  # a level that was not there at fit
    with pytest.warns(UserWarning, match="no such category in training"):
        found = pickle.loads(pickle.dumps(model)).predict_proba(last)
    if problem == "regression":
        assert found.shape == (20,)
        assert np.sqrt(np.mean((found[1:] - y[41:]) ** 2)) < 0.5 * y.std()
    else:
        assert found.shape == (20, 3)
        assert np.mean(found.argmax(axis=1)[1:] == y[41:]) > 0.7
    assert np.isfinite(found).all()
