"""Every constant of attention, from finite layers that are written out without the library."""

import numpy as np
import pytest

import attention_by_hand
import attention_oracle

pytestmark = [pytest.mark.claims, pytest.mark.slow]

KINDS = [("softmax", "d"), ("identity", "d"), ("relu", "d"), ("identity", "sqrt_d"), ("relu", "sqrt_d")]


def largest_z(scores, scaling, attend=attention_oracle.attend):
    """Means of K and Theta over 256 layers less what is expected, over the standard error: the largest of each."""
    mean, error = attention_by_hand.means(scores, scaling, True)
    known = attention_by_hand.expected(scores, scaling, True, attend)
    return np.abs((mean - known) / error).max(axis=(1, 2))


@pytest.mark.parametrize(("scores", "scaling"), KINDS)
def test_means_of_finite_layers(scores, scaling):
    found = largest_z(scores, scaling)
    print(found)
    assert found.max() < 4, found


def lost_square(state, scores, scaling, qk, vo, *rest):
    return attention_oracle.attend(state, scores, scaling, qk, vo**0.5, *rest)


def lost_score_square(state, scores, scaling, qk, *rest):
    return attention_oracle.attend(state, scores, scaling, qk**0.5 if scaling == "sqrt_d" else qk**4, *rest)


def untied(state, scores, scaling, qk, *rest):
    return attention_oracle.attend(state, scores, scaling, qk * 1e-9, *rest)


def once_learned(state, scores, scaling, qk, vo, b, causal):
    """Theta with Sigma of the layer once, where values and outputs have it each."""
    sigma, theta = attention_oracle.attend(state, scores, scaling, qk, vo, b, causal)
    return sigma, {key: theta[key] - (sigma[key] - b**2) for key in theta}


def without_queries(state, scores, scaling, qk, vo, b, causal):
    """Theta without what queries and keys learn, as over d."""
    sigma, theta = attention_oracle.attend(state, scores, scaling, qk, vo, b, causal)
    bare = attention_oracle.attend((state[0], dict.fromkeys(state[1], 0)), scores, scaling, qk, vo, b, causal)[1]
    return sigma, {key: theta[key] - (bare[key] - 2 * sigma[key] + b**2) for key in theta}


@pytest.mark.parametrize(
    ("kind", "wrong", "seen"),
    [
        (("softmax", "d"), lost_square, (0, 1)),
        (("relu", "sqrt_d"), lost_square, (0, 1)),
        (("identity", "d"), lost_score_square, (0, 1)),
        (("softmax", "d"), untied, (0, 1)),
        (("softmax", "d"), once_learned, (1,)),
        (("identity", "sqrt_d"), once_learned, (1,)),
        (("relu", "sqrt_d"), without_queries, (1,)),
    ],
)
def test_other_constants_are_refused(kind, wrong, seen):
    found = largest_z(*kind, wrong)
    print(found)
    assert min(found[i] for i in seen) > 6, found
