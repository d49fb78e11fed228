"""Operations on one pair of sites are written as LLVM's intermediate code, for a vector of second inputs at once."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from widelimit.architecture.native.program import Unknown

TYPES = {"float32": "float", "float64": "double", "bool": "i1", "int32": "i32", "int64": "i64"}
_PLAIN = {"add": "fadd", "add_any": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INTEGER = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and": "and",
    "or": "or",
    "xor": "xor",
    "div": "sdiv",
    "rem": "srem",
}
_INTEGER |= {"shift_left": "shl", "shift_right_arithmetic": "ashr"}
_ORDER = {"eq", "ne", "lt", "le", "gt", "ge"}
_INTRINSIC = {"sqrt": "sqrt", "abs": "fabs", "floor": "floor", "ceil": "ceil"}
_LIBRARY = {
    "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "pow", "cbrt",
}  # fmt: skip


class Word(NamedTuple):
    """A value in the code: its name or number, its type, and whether it is a vector."""

    text: str
    type: str
    wide: bool


@final
class Function:
    """A function is written line by line; what changes in loops is on the stack, until LLVM finds registers."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.start: list[str] = []
        self.lines: list[str] = []
        self.called: set[str] = set()
        self._count = 0

    def name(self) -> str:
        """Return a name that is free."""
        self._count += 1
        return f"%v{self._count}"

    def put(self, text: str) -> str:
        """Write an instruction with a result, and return its name."""
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def form(self, word: Word) -> str:
        """Return the type of a word as it is written."""
        return f"<{self.width} x {word.type}>" if word.wide else word.type

    def result(self, text: str, type: str, wide: bool) -> Word:
        """Write an instruction and return its result."""
        return Word(self.put(text), type, wide)

    def number(self, value: Any, type: str) -> Word:
        """Return a literal."""
        if type in ("float", "double"):
            exact = float(np.float32(value)) if type == "float" else float(value)
            return Word(f"0x{struct.unpack('<Q', struct.pack('<d', exact))[0]:016X}", type, False)
        return Word(str(int(value)), type, False)

    def widen(self, word: Word) -> Word:
        """Return a vector with one number in all places."""
        if word.wide:
            return word
        vector = f"<{self.width} x {word.type}>"
        one = self.put(f"insertelement {vector} poison, {word.type} {word.text}, i64 0")
        return self.result(
            f"shufflevector {vector} {one}, {vector} poison, <{self.width} x i32> zeroinitializer", word.type, True
        )

    def alike(self, words: Sequence[Word]) -> list[Word]:
        """Return all as vectors if one is."""
        return [self.widen(w) for w in words] if any(w.wide for w in words) else list(words)

    def binary(self, verb: str, *words: Word, type: str = "") -> Word:
        """Write an operation of two words."""
        a, b = self.alike(words)
        return self.result(f"{verb} {self.form(a)} {a.text}, {b.text}", type or a.type, a.wide)

    def call(self, name: str, words: Sequence[Word]) -> Word:
        """Write a call of one of LLVM's own functions."""
        words = self.alike(words)
        form = self.form(words[0])
        suffix = {"float": "f32", "double": "f64"}[words[0].type]
        name = f"llvm.{name}.v{self.width}{suffix}" if words[0].wide else f"llvm.{name}.{suffix}"
        self.called.add(f"declare {form} @{name}({', '.join([form] * len(words))})")
        given = ", ".join(f"{form} {w.text}" for w in words)
        return self.result(f"call {form} @{name}({given})", words[0].type, words[0].wide)

    def library(self, name: str, words: Sequence[Word]) -> Word:
        """Write calls of a function of the C library, one for every place of a vector."""
        words, type = self.alike(words), words[0].type
        name += "f" if type == "float" else ""
        self.called.add(f"declare {type} @{name}({', '.join([type] * len(words))})")
        if not words[0].wide:
            return self.result(f"call {type} @{name}({', '.join(f'{type} {w.text}' for w in words)})", type, False)
        form, out = self.form(words[0]), "poison"
        for k in range(self.width):
            parts = [self.put(f"extractelement {form} {w.text}, i64 {k}") for w in words]
            one = self.put(f"call {type} @{name}({', '.join(f'{type} {p}' for p in parts)})")
            out = self.put(f"insertelement {form} {out}, {type} {one}, i64 {k}")
        return Word(out, type, True)

    def select(self, chosen: Word, yes: Word, no: Word) -> Word:
        """Write a choice."""
        chosen, yes, no = self.alike([chosen, yes, no])
        form = self.form(yes)
        return self.result(
            f"select {self.form(chosen)} {chosen.text}, {form} {yes.text}, {form} {no.text}", yes.type, yes.wide
        )

    # --- addresses are integers and pointers of one pair of sites ---

    def integer(self, verb: str, a: str | int, b: str | int) -> str:
        """Write an operation on 64-bit integers."""
        return self.put(f"{verb} i64 {a}, {b}")

    def limit(self, name: str, a: str | int, b: str | int) -> str:
        """Write "smax" or "smin" of two integers."""
        self.called.add(f"declare i64 @llvm.{name}.i64(i64, i64)")
        return self.put(f"call i64 @llvm.{name}.i64(i64 {a}, i64 {b})")

    def place(self, base: str, index: str | int, type: str) -> str:
        """Return a pointer to the number at an index."""
        return self.put(f"getelementptr {type}, ptr {base}, i64 {index}")

    def load(self, base: str, index: str | int, type: str, wide: bool) -> Word:
        """Read a number, or as many as a vector has; `index` counts numbers, or vectors."""
        if wide:
            index = self.integer("mul", index, self.width)
        form = f"<{self.width} x {type}>" if wide else type
        return self.result(f"load {form}, ptr {self.place(base, index, type)}, align 4", type, wide)

    def store(self, word: Word, base: str, index: str | int) -> None:
        """Write a vector to memory; `index` counts vectors."""
        word = self.widen(word)
        target = self.place(base, self.integer("mul", index, self.width), word.type)
        self.lines.append(f"  store {self.form(word)} {word.text}, ptr {target}, align 4")

    def variable(self, word: Word) -> str:
        """Make a variable with this value."""
        name, form = self.name(), self.form(word)
        self.start.append(f"  {name} = alloca {form}")
        self.set(name, word)
        return name

    def set(self, variable: str, word: Word) -> None:
        """Give a variable another value."""
        self.lines.append(f"  store {self.form(word)} {word.text}, ptr {variable}")

    def get(self, variable: str, like: Word) -> Word:
        """Return the value of a variable."""
        return self.result(f"load {self.form(like)}, ptr {variable}", like.type, like.wide)

    def add_product(self, variable: str, like: Word, a: Word, b: Word) -> None:
        """Add a product to a variable, in one rounding where the processor can."""
        self.set(variable, self.binary("fadd contract", self.get(variable, like), self.binary("fmul contract", a, b)))

    def loop(self, low: str | int, high: str | int, body: Callable[[str], None]) -> None:
        """Write a loop over integers."""
        zero = Word(str(low), "i64", False)
        variable, (head, inside, end) = self.variable(zero), (self.name()[1:] for _ in range(3))
        self.lines += [f"  br label %{head}", f"{head}:"]
        i = self.get(variable, zero).text
        inner = self.put(f"icmp slt i64 {i}, {high}")
        self.lines += [f"  br i1 {inner}, label %{inside}, label %{end}", f"{inside}:"]
        body(i)
        self.set(variable, Word(self.integer("add", i, 1), "i64", False))
        self.lines += [f"  br label %{head}", f"{end}:"]

    def loops(self, bounds: Sequence[tuple[Any, Any]], body: Callable[[tuple[str, ...]], None]) -> None:
        """Write loops within loops."""
        if bounds:
            self.loop(*bounds[0], lambda i: self.loops(bounds[1:], lambda more: body((i, *more))))
        else:
            body(())

    def either(self, chosen: str, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """Write two branches."""
        names = [self.name()[1:] for _ in range(3)]
        self.lines.append(f"  br i1 {chosen}, label %{names[0]}, label %{names[1]}")
        for name, body in zip(names, (yes, no), strict=False):
            self.lines.append(f"{name}:")
            body()
            self.lines.append(f"  br label %{names[2]}")
        self.lines.append(f"{names[2]}:")

    def text(self, head: str) -> str:
        """Return the whole function."""
        return "\n".join([f"define {head} #0 {{", "start:", *self.start, *self.lines, "  ret void", "}"])

    # --- JAX's operations ---

    def operation(self, name: str, words: Sequence[Word], parameters: dict[str, Any], dtype: str) -> Word:
        """Write one of JAX's operations on numbers. Raises: Unknown."""
        type, first = TYPES.get(dtype, ""), words[0]
        real = first.type in ("float", "double")
        if not type:
            raise Unknown(f"numbers of type {dtype}")
        if name in _PLAIN and real:
            return self.binary(f"{_PLAIN[name]} contract", *words)
        if name in _INTEGER and not real:
            return self.binary(_INTEGER[name], *words)
        if name in _ORDER:
            prefix = ("fcmp u" if name == "ne" else "fcmp o") if real else "icmp " + "s" * (name not in ("eq", "ne"))
            return self.binary(prefix + name, *words, type="i1")
        if name in _INTRINSIC and real:
            return self.call(_INTRINSIC[name], words)
        if name in _LIBRARY:
            return self.library(name, words)
        if name in _SPECIAL:
            return _SPECIAL[name](self, words, parameters, type)
        raise Unknown(f"the operation {name!r}")

    def power(self, word: Word, exponent: int) -> Word:
        """Write an integer power as products."""
        if exponent < 0:
            return self.binary("fdiv contract", self.number(1, word.type), self.power(word, -exponent))
        if exponent < 2:
            return word if exponent else self.number(1, word.type)
        half = self.power(word, exponent // 2)
        square = self.binary("fmul contract", half, half)
        return self.binary("fmul contract", square, word) if exponent % 2 else square

    def extreme(self, words: Sequence[Word], order: str) -> Word:
        """Write the larger or smaller of two."""
        kind = f"fcmp o{order}" if words[0].type in ("float", "double") else f"icmp s{order}"
        return self.select(self.binary(kind, *words, type="i1"), *words)

    def negative(self, word: Word) -> Word:
        """Write the number with the other sign."""
        if word.type not in ("float", "double"):
            return self.binary("sub", self.number(0, word.type), word)
        return self.result(f"fneg {self.form(word)} {word.text}", word.type, word.wide)

    def bits(self, word: Word, type: str) -> Word:
        """Write the number that has the same bits."""
        form = f"<{self.width} x {type}>" if word.wide else type
        return self.result(f"bitcast {self.form(word)} {word.text} to {form}", type, word.wide)

    def rounded(self, word: Word, parameters: dict[str, Any]) -> Word:
        """Write the number rounded to fewer digits, to the nearest, ties to even. Raises: Unknown: fewer exponents."""
        type, digits, exponent = {"float": ("i32", 23, 8), "double": ("i64", 52, 11)}[word.type]
        drop = digits - parameters["mantissa_bits"]
        if parameters["exponent_bits"] < exponent or drop < 1:
            raise Unknown("a rounding of exponents")
        bits = self.bits(word, type)
        odd = self.binary("and", self.binary("ashr", bits, self.number(drop, type)), self.number(1, type))
        half = self.binary("add", odd, self.number((1 << (drop - 1)) - 1, type))
        kept = self.binary("and", self.binary("add", bits, half), self.number(-(1 << drop), type))
        return self.bits(kept, word.type)

    def sign(self, word: Word) -> Word:
        """Write the sign, 0 for 0."""
        if word.type not in ("float", "double"):
            high, low = (self.number(k, word.type) for k in (1, -1))
            return self.extreme([self.extreme([word, high], "lt"), low], "gt")
        one = self.call("copysign", [self.number(1, word.type), word])
        zero = self.binary("fcmp oeq", word, self.number(0, word.type), type="i1")
        return self.select(zero, word, one)

    def convert(self, word: Word, type: str) -> Word:
        """Write a change of type."""
        if word.type == type:
            return word
        if type == "i1":
            return self.binary("fcmp une", word, self.number(0, word.type), type="i1")
        sizes = {"i1": 1, "i32": 32, "i64": 64, "float": 32, "double": 64}
        real, longer = type in ("float", "double"), sizes[type] > sizes[word.type]
        if word.type in ("float", "double"):
            verb = ("fpext" if longer else "fptrunc") if real else "fptosi"
        elif real:
            verb = "uitofp" if word.type == "i1" else "sitofp"
        else:
            verb = ("zext" if word.type == "i1" else "sext") if longer else "trunc"
        form = f"<{self.width} x {type}>" if word.wide else type
        return self.result(f"{verb} {self.form(word)} {word.text} to {form}", type, word.wide)


_Writer = Callable[[Function, Sequence[Word], dict[str, Any], str], Word]
_SPECIAL: dict[str, _Writer] = {
    "neg": lambda f, w, *_: f.negative(w[0]),
    "abs": lambda f, w, *_: f.extreme([w[0], f.negative(w[0])], "gt"),
    "reduce_precision": lambda f, w, parameters, _: f.rounded(w[0], parameters),
    "bitcast_convert_type": lambda f, w, _, type: f.bits(w[0], type),
    "max": lambda f, w, *_: f.extreme(w, "gt"),
    "min": lambda f, w, *_: f.extreme(w, "lt"),
    "clamp": lambda f, w, *_: f.extreme([f.extreme(w[:2], "gt"), w[2]], "lt"),
    "square": lambda f, w, *_: f.power(w[0], 2),
    "integer_pow": lambda f, w, parameters, _: f.power(w[0], parameters["y"]),
    "rsqrt": lambda f, w, *_: f.binary("fdiv", f.number(1, w[0].type), f.call("sqrt", w)),
    "sign": lambda f, w, *_: f.sign(w[0]),
    "select_n": lambda f, w, *_: f.select(w[0], w[2], w[1]),
    "not": lambda f, w, *_: f.binary("xor", w[0], f.number(-1, w[0].type)),
    "is_finite": lambda f, w, *_: f.binary("fcmp olt", f.call("fabs", w), f.number(np.inf, w[0].type), type="i1"),
    "convert_element_type": lambda f, w, _, type: f.convert(w[0], type),
}
