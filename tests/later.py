"""Values of tables that are made when a test first uses them: collecting the tests compiles nothing."""

import functools


class Later:
    """What `make` returns, made once; its attributes and calls of them come later, too."""

    def __init__(self, make):
        self.made = functools.cache(make)

    def __getattr__(self, name):
        return Later(lambda: getattr(self.made(), name))

    def __call__(self, *given, **named):
        return self.made()(*given, **named)
