"""Rows of embedding tables on a CPU, in numba: which are read, and Adam's steps for them, each row in one go.

Tables are (I, D) float32. Only what `training/optimizers.py` and `nn/embedding.py` compute in torch elsewhere.
"""

from __future__ import annotations

import math

import numpy as np

from deepinterest.kernels.compiled import compiled
from deepinterest.kernels.tiles import FLOAT, prefetch

ONE = np.float32(1)
AHEAD = 8  # rows that are fetched before they are needed: they lie anywhere in memory


@compiled
def distinct(rows, place, found, inverse):
    """The distinct values of rows (n,) in the order of their first appearance, into found (n,).

    Returns how many they are, or -1 where a row is none of the I.

    place (I,) int32 is -1 everywhere, before and after. inverse (n,) tells where in `found` each row is.
    """
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        if row < 0 or row >= len(place):
            for k in range(count):
                place[found[k]] = -1
            return -1
        if place[row] < 0:
            place[row] = count
            found[count] = row
            count += 1
        inverse[i] = place[row]
    for i in range(count):
        place[found[i]] = -1
    return count


@compiled
def _fetch(table, mean, square, offset, size):
    """So many floats of all three."""
    prefetch(table + offset, size)
    prefetch(mean + offset, size)
    prefetch(square + offset, size)


@compiled
def catch_up(table, mean, square, last_step, rows, steps, rules, base, eps, beta1, beta2):
    """Make the steps up to `steps` that `rows` (n,) have missed; they may repeat. See `DeferredAdam._moved`.

    Rows that the table doesn't have are left to the lookup that follows, which refuses them.

    rules (s, 2c): weights and nodes of the missed steps' sum, for rows last updated at step base + s.
    """
    D, columns = table.shape[1], rules.shape[1] // 2
    reach = np.empty(D, np.float32)
    of_table, of_mean, of_square = table.ctypes.data, mean.ctypes.data, square.ctypes.data
    for i in range(len(rows)):
        if i + 2 * AHEAD < len(rows):
            prefetch(last_step.ctypes.data + 8 * rows[i + 2 * AHEAD], 1)
            ahead = rows[i + AHEAD]
            if 0 <= ahead < len(table) and last_step[ahead] < steps:
                _fetch(of_table, of_mean, of_square, FLOAT * ahead * D, D)
        row = rows[i]
        if row < 0 or row >= len(table):
            continue
        since = last_step[row]
        if since >= steps:
            continue
        last_step[row] = steps
        decay1 = np.float32(math.exp((steps - since) * math.log(beta1)))
        decay2 = np.float32(math.exp((steps - since) * math.log(beta2)))
        reach[:] = 0
        for column in range(columns):
            weight, node = rules[since - base, column], rules[since - base, columns + column] * np.float32(eps)
            if weight != 0:
                for j in range(D):
                    reach[j] += weight / (np.sqrt(square[row, j]) + node)
        for j in range(D):
            table[row, j] -= reach[j] * mean[row, j]
            mean[row, j] *= decay1
            square[row, j] *= decay2


@compiled
def update(table, mean, square, last_step, rows, gradient, place, steps, rate, eps, beta1, beta2):
    """Adam's step for `rows` (n,) with gradient (n, D); the gradients of a row that repeats are summed, in place.

    Returns whether the table has all rows; where it hasn't, nothing is changed but gradients.

    place (I,) int32 is -1 everywhere, before and after.
    """
    D = table.shape[1]
    keep1, keep2, rate, eps = np.float32(beta1), np.float32(beta2), np.float32(rate), np.float32(eps)
    add1, add2 = np.float32(1 - beta1), np.float32(1 - beta2)
    for i in range(len(rows)):
        if rows[i] < 0 or rows[i] >= len(table):
            for k in range(i):
                place[rows[k]] = -1
            return False
        first = place[rows[i]]
        if first < 0:
            place[rows[i]] = i
        else:
            for j in range(D):
                gradient[first, j] += gradient[i, j]
    of_table, of_mean, of_square = table.ctypes.data, mean.ctypes.data, square.ctypes.data
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            _fetch(of_table, of_mean, of_square, FLOAT * rows[i + AHEAD] * D, D)
        row = rows[i]
        if place[row] != i:
            continue
        place[row] = -1
        last_step[row] = steps
        for j in range(D):
            g = gradient[i, j]
            m = keep1 * mean[row, j] + add1 * g
            v = keep2 * square[row, j] + add2 * g * g
            mean[row, j] = m
            square[row, j] = v
            table[row, j] -= rate * m / (np.sqrt(v) + eps)
    return True
