"""The tables of what `make test` leaves to `make test-grids`."""

import pytest

import grids

NODES = [f"tests/test_x.py::test_y[{cell}]" for cell in ("relu-float64", "relu-float32", "erf-float64")]
NODES += ["tests/test_x.py::test_long", "tests/test_x.py::test_short"]


@pytest.fixture
def tables(monkeypatch):
    """Sets both tables."""

    def given(stay, covered):
        monkeypatch.setattr(grids, "STAY", stay)
        monkeypatch.setattr(grids, "COVERED", covered)

    given({"test_x.py::test_y": ("*-float64",)}, {"test_x.py::test_long": "test_x.py::test_short"})
    return given


@pytest.mark.usefixtures("tables")
def test_cells_and_tests_are_left_out():
    assert [grids.left_out(node) for node in NODES] == [False, True, False, True, False]
    assert grids.faults(NODES) == []


@pytest.mark.parametrize(
    ("stay", "covered", "fault"),
    [
        ({"test_x.py::test_z": ("*",)}, {}, "test_x.py::test_z is no test"),
        ({"test_x.py::test_y": ("tanh-*", "relu-*")}, {}, "test_x.py::test_y: tanh-* is no cell"),
        ({"test_x.py::test_y": ("*",)}, {}, "test_x.py::test_y has no cell that is left out"),
        ({}, {"test_x.py::test_long": "test_x.py::test_gone"}, "test_x.py::test_gone is no test"),
        (
            {},
            {"test_x.py::test_long": "test_x.py::test_short", "test_x.py::test_short": "test_x.py::test_y"},
            "test_x.py::test_long is covered by test_x.py::test_short, which is left out itself",
        ),
    ],
)
def test_an_entry_that_covers_nothing_is_found(tables, stay, covered, fault):
    tables(stay, covered)
    assert grids.faults(NODES) == [fault]
