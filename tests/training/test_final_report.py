import numpy as np
from PIL import Image

from dino_ssl.evaluation import results
from dino_ssl.training.pretraining import pretrain
from tests.training.small_runs import BATCH, STEPS_PER_EPOCH, a_config


def test_the_results_file_holds_what_the_table_says_and_on_what_it_was_measured(tmp_path):
    config = a_config(tmp_path, steps=2, knn={"every_epochs": 1, "k": 1})
    report = pretrain(config)
    found = results.read(config.output_dir / "eval" / "results.json")
    assert {one.encoder["name"]: one.measurements[0].value for one in found} == report.knn
    assert [line.split("  ")[1] for line in report.text.splitlines()[1:5]] == list(report.knn)
    for one in found:
        assert one.protocol == "knn/1" and one.measurements[0].settings == {"k": 1}
        assert one.data["bank"] == one.data["queries"]
        assert one.data["bank"]["num_images"] == BATCH * STEPS_PER_EPOCH


def test_images_that_cannot_be_read_are_not_counted(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "photos" / ("odd", "even")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    path.write_bytes(b"")
    config = a_config(tmp_path, data=str(tmp_path / "photos"), steps=2, knn={"every_epochs": 1, "k": 1})
    pretrain(config)
    found = results.read(config.output_dir / "eval" / "results.json")
    assert [one.data["bank"]["num_images"] for one in found] == [39] * 4
