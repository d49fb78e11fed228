"""The code of a whole stage: functions of nests that layers alike share, and the loop over first inputs and planes."""

from __future__ import annotations

from widelimit.architecture.native.code import Function
from widelimit.architecture.native.nests import Nest
from widelimit.architecture.native.plan import Plan
from widelimit.architecture.native.singles import write_single


def write(plan: Plan, *, itself: bool = False) -> str:
    """Return the code of a stage, where layers alike share functions; `itself`: of second inputs with themselves."""
    pointers = ", ".join(f"ptr noalias %{name}" for name in "XYWFC")
    pointers += ", ptr noalias %A, ptr noalias %I, ptr noalias %O"
    arguments = f"{pointers}, i64 %d0, i64 %d1, i64 %d2"
    bodies: dict[str, str] = {}
    calls, declared = [], set()
    for k, factor in enumerate(plan.factors):
        nest = Nest(plan, k, itself=itself)
        if plan.single:
            write_single(nest)
        else:
            nest.write()
        more = "".join(f", i64 {name}" for name in nest.offsets.values())
        body = nest.f.text(f"internal void @NAME({arguments}{more})")
        name = bodies.setdefault(body, f"nest{len(bodies)}")
        declared |= nest.f.called
        shifts = [f"mul i64 %d{axis}, {n}" for axis, n in enumerate(factor)]
        calls.append((name, shifts, [value for _, value in nest.offsets]))
    driver = _driver(calls, plan.width, len(plan.needed))
    parts = [body.replace("@NAME", f"@{name}") for body, name in bodies.items()]
    return "\n\n".join([*sorted(declared), *parts, driver])


def _driver(calls: list[tuple[str, list[str], list[int]]], width: int, outputs: int) -> str:
    """Return the function that takes first inputs, with one block of second inputs, through all planes."""
    f = Function(width)

    def row(i: str) -> None:
        x, a = (
            f.place("%X", f.integer("mul", i, "%nx"), "i8"),
            f.place("%A", f.integer("mul", i, outputs * width), "double"),
        )

        def plane(k: str) -> None:
            at = f.integer("mul", k, 3)
            offsets = [f.put(f"load i64, ptr {f.place('%P', f.integer('add', at, i), 'i64')}") for i in range(3)]
            for name, shifts, more in calls:
                moved = [f.put(shift.replace(f"%d{i}", offsets[i])) for i, shift in enumerate(shifts)]
                given = ", ".join(f"i64 {v}" for v in [*moved, *more])
                pointers = f"ptr {x}, ptr %Y, ptr %W, ptr %F, ptr %C, ptr {a}, ptr %I, ptr %O"
                f.lines.append(f"  call void @{name}({pointers}, {given})")

        f.loop(0, "%np", plane)

    f.loop(0, "%n", row)
    pointers = "ptr %Y, ptr %W, ptr %F, ptr %C, ptr %P, i64 %np, ptr %A, ptr %I, ptr %O"
    return f.text(f"void @run(ptr %X, i64 %n, i64 %nx, {pointers})")


def transposition(width: int, type: str) -> str:
    """Return the code that takes tiles of `width` vectors, `%sx` bytes from each other, to their transposes."""
    f = Function(width)

    def tile(t: str) -> None:
        a, b = (f.place(f"%{k}", f.integer("mul", t, f"%t{k}"), "i8") for k in "XY")
        words = [f.load(f.place(a, f.integer("mul", "%sX", k), "i8"), 0, type, True) for k in range(width)]
        step = width // 2
        while step:
            for i in (i for i in range(width) if not i & step):
                pair = f"{f.form(words[i])} {words[i].text}, {f.form(words[i])} {words[i + step].text}"
                for k, first in ((i, 0), (i + step, step)):
                    places = [
                        (j | step) ^ step ^ first if not j & step else width + ((j ^ step) | first)
                        for j in range(width)
                    ]
                    mask = ", ".join(f"i32 {place}" for place in places)
                    words[k] = f.result(f"shufflevector {pair}, <{width} x i32> <{mask}>", type, True)
            step //= 2
        for k, word in enumerate(words):
            f.store(word, f.place(b, f.integer("mul", "%sY", k), "i8"), 0)

    f.loop(0, "%n", tile)
    return f.text("void @run(ptr noalias %X, i64 %n, i64 %sX, i64 %tX, ptr noalias %Y, i64 %sY, i64 %tY)")
