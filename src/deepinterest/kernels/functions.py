"""Sigmoid and tanh, in place, of flat arrays in compiled functions.

Loops run from 0 to the length of a slice: numba makes vectors of no others, because it asks of a signed index each time
whether it is negative.
"""

from __future__ import annotations

import numpy as np

from deepinterest.kernels.compiled import compiled

_LOG2E, _ROUND, _BIAS, _SHIFT = np.float32(1.44269504), np.float32(0.5), np.float32(127), np.float32(1 << 23)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOW, _HIGH, _ONE, _TWO = np.float32(-87), np.float32(88), np.float32(1), np.float32(2)
_TERMS = tuple(np.float32(1 / d) for d in (2, 6, 24, 120, 720, 5040))


@compiled
def _exp(x):
    """2^n times a Taylor polynomial on [-ln2/2, ln2/2]; within 1e-7 of the value."""
    x = _LOW if x < _LOW else x
    x = _HIGH if x > _HIGH else x
    n = np.floor(x * _LOG2E + _ROUND)
    x = x - n * _LN2_HIGH - n * _LN2_LOW
    y = _TERMS[4] + x * _TERMS[5]
    y = _TERMS[3] + x * y
    y = _TERMS[2] + x * y
    y = _TERMS[1] + x * y
    y = _TERMS[0] + x * y
    return (_ONE + x + x * x * y) * np.int32((n + _BIAS) * _SHIFT).view(np.float32)


@compiled
def sigmoid(values):
    for j in range(len(values)):
        values[j] = _ONE / (_ONE + _exp(-values[j]))


@compiled
def tanh(values):
    for j in range(len(values)):
        e = _exp(-_TWO * values[j])
        values[j] = (_ONE - e) / (_ONE + e)


@compiled
def through_sigmoid(gradient, values):
    """Gradient of sigmoids' values -> of what went into them."""
    for j in range(len(gradient)):
        gradient[j] *= values[j] * (_ONE - values[j])
