import numpy as np
import pytest

from dino_ssl.data.crops import MultiCrop, dino_recipe
from dino_ssl.data.pixels import Pixels
from dino_ssl.data.probe import FASTEST_GPU, Probe, probe

CROPS = MultiCrop(
    dino_recipe(global_size=16, global_scale=(0.4, 1.0), num_local_crops=2, local_size=8, local_scale=(0.05, 0.4))
)


@pytest.mark.parametrize("num_images", [1, 40])
def test_a_probe_measures_a_batch_however_short_it_is(num_images: int) -> None:
    source = Pixels(np.zeros((num_images, 20, 30, 3), np.uint8), None, (), "zeros")
    found = probe(source, CROPS, num_threads=1, seconds=0.0)
    assert found.num_threads == 1 and found.images_per_second > 0 and found.cpu_seconds > 0


def test_the_cores_for_a_gpu_are_its_images_times_their_cost() -> None:
    found = Probe(num_threads=2, images_per_second=1000.0, cpu_seconds=0.002)
    assert found.cores_for(500.0) == pytest.approx(1.0)
    assert found.text().startswith("this machine: 1,000 images/s with 2 threads, 2.00 ms of a core per image")
    assert f"takes {FASTEST_GPU:,.0f} images/s needs 7 such cores" in found.text()
