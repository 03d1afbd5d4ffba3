"""Tensors that an optimizer has flattened: any run of elements is a few rectangular regions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.reading.values import read_values
from ckpttool.tensors import DTYPES, Extent, TensorSpec
from ckpttool.tiling import TilingError, in_runs, regions_of_run


@given(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.data())
@settings(max_examples=100, deadline=None)
def test_a_run_is_cut_into_regions_that_are_its_elements_in_order(shape, data):
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    numbers = np.arange(numel).reshape(shape)
    regions = regions_of_run(shape, start, stop)
    found = [
        numbers[tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))].ravel()
        for offsets, sizes in regions
    ]
    assert np.concatenate([np.zeros(0, int), *found]).tolist() == list(range(start, stop))
    assert len(regions) <= max(1, 2 * len(shape) - 1)
    assert [region.offsets for region in regions] == sorted(region.offsets for region in regions)


@given(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.data())
@settings(max_examples=60, deadline=None)
def test_runs_in_any_places_are_the_tensor(tmp_path_factory, shape, data):
    place = tmp_path_factory.mktemp("runs") / "numbers"
    numel = math.prod(shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, numel), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, numel], strict=True))
    values = np.arange(numel, dtype=np.float32)
    places, stored = {}, []
    for index in data.draw(st.permutations(range(len(bounds)))):
        start, stop = bounds[index]
        places[index] = sum(map(len, stored)) + 1
        stored += [[-1], values[start:stop]]
        places[index] = sum(map(len, stored)) - (stop - start)
    np.concatenate(stored).astype(np.float32).tofile(place)
    storage = Extent(place, 0, place.stat().st_size)
    runs = [
        TensorSpec(DTYPES["float32"], (stop - start,), storage, places[index])
        for index, (start, stop) in enumerate(bounds)
    ]
    spec = in_runs(shape, runs)
    assert spec.shape == shape
    assert np.array_equal(read_values(spec), values.reshape(shape))


def test_runs_that_are_not_the_tensor_are_refused(tmp_path):
    run = TensorSpec(DTYPES["float32"], (5,), Extent(tmp_path, 0, 20))
    other = TensorSpec(DTYPES["bfloat16"], (1,), Extent(tmp_path, 0, 20))
    with pytest.raises(TilingError, match="have 5 elements, and it has 6"):
        in_runs((2, 3), [run])
    with pytest.raises(TilingError, match="different element types"):
        in_runs((2, 3), [run, other])
