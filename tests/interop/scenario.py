"""The list of scenarios, and the two words in which they state what must hold."""

SCENARIOS = []
"""(name, function, own): `own` scenarios start what they need themselves; the others share one running site."""


def scenario(name, own=False):
    """Lists a function as a scenario. A shared one is called with the site and its watch, an own one with nothing."""

    def register(function):
        SCENARIOS.append((name, function, own))
        return function

    return register


def expect_equal(what, got, wanted):
    """Fails unless both are the same."""
    if got != wanted:
        raise AssertionError(f"{what} is {got!r}, not {wanted!r}")


def expect(what, holds):
    """Fails with these words unless it holds."""
    if not holds:
        raise AssertionError(what)
