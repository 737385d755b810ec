"""Classes of images: the numbers are those of plain PyTorch, alone or as blocks of a pack."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from diastole.jobs import contract
from diastole.jobs.task import Unit
from diastole.lake.errors import ItemError, SpecError
from diastole.lake.models import InputContract, Manifest
from diastole.workers.parts import columns_to_table
from diastole.workers.tasks import make_task

from .published import drive

CLASSES = ["none", "mild", "severe"]
IMAGENET = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def package(classes=CLASSES, **options):
    return Manifest.model_validate(
        {
            "name": "m",
            "version": "1",
            "task": "classify",
            "runtime": "torchscript",
            "files": {"net": {"path": "net.pt", "sha256": "0" * 64}},
            "inputs": {"input": {"axes": "cyx"}},
            "classes": classes,
            "options": options,
        }
    )


def network(channels=3, classes=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    ).append(torch.nn.Linear(16, classes))


def images(count=5, shape=(3, 20, 24), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(dtype)


def alone(task, image, net):
    """The columns of one image, which no pack holds."""
    with torch.inference_mode():
        _, result = drive(task, Unit({"input": image}, {"input": {}}), lambda _, x: {"output": net(*x.values())})
    return result.columns


def block(task, data, net):
    with torch.inference_mode():
        return task.finish_block({"output": net(*task.encode_block(data, {}, torch.device("cpu")).values())})


def rows(columns, schema):
    if all(isinstance(values, pa.Array) for values in columns.values()):
        return pa.table([columns[name] for name in schema.names], schema=schema).to_pylist()
    return columns_to_table(columns, schema).to_pylist()


OPTIONS = {
    "as they are": {},
    "scaled": {"scale": 1 / 255},
    "imagenet": IMAGENET,
    "turned round": {**IMAGENET, "channels": [2, 1, 0]},
    "one value for all": {"scale": 1 / 255, "mean": [0.5], "std": [0.25]},
    "smaller": {**IMAGENET, "resize": [11, 13]},
    "larger": {**IMAGENET, "resize": [40, 33]},
    "cropped": {**IMAGENET, "resize": [16, 19], "crop": [12, 12]},
}


def plain(data, said):
    """What the options mean, in plain PyTorch, image after image."""
    ready = []
    for image in data:
        x = torch.tensor(image.astype(np.float32))[None] * said.get("scale", 1.0)
        x = x[:, said.get("channels", [0, 1, 2])]
        if "resize" in said:
            x = torch.nn.functional.interpolate(x, size=said["resize"], mode="bilinear", antialias=True)
        if "crop" in said:
            top, left = (x.shape[2] - 12) // 2, (x.shape[3] - 12 + 1) // 2
            assert (x.shape[2] - 12) % 2 == 0
            x = x[:, :, top : top + 12, left : left + 12]
        if "mean" in said:
            x = (x - torch.tensor(said["mean"]).view(1, -1, 1, 1)) / torch.tensor(said["std"]).view(1, -1, 1, 1)
        ready.append(x)
    return torch.cat(ready)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_network_sees_what_plain_pytorch_makes_of_the_options(name, dtype):
    data = images(dtype=dtype)
    before = data.copy()
    found = make_task(package(**OPTIONS[name])).encode_block(data, {}, torch.device("cpu"))["x"]
    assert torch.equal(found, plain(data, OPTIONS[name]))
    assert np.array_equal(data, before)


def test_a_picture_made_half_as_large_keeps_its_mean():
    data = np.kron(images(1, (1, 10, 10)), np.ones((2, 2), np.uint8)).astype(np.uint8)
    found = make_task(package(resize=[10, 10], classes=["a"])).encode_block(data, {}, torch.device("cpu"))["x"]
    assert found.shape == (1, 1, 10, 10)
    assert abs(float(found.mean()) - data.mean()) < 1.0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_block_gives_exactly_the_numbers_of_each_image_alone(name, activation):
    task, net = make_task(package(**OPTIONS[name], activation=activation)), network()
    each = [alone(task, image, net) for image in images(1)]
    single = rows({key: [row[key] for row in each] for key in each[0]}, task.item_columns)
    assert rows(block(task, images(1), net), task.item_columns) == single
    several = rows(block(task, images(5), net), task.item_columns)
    for row, image in zip(several, images(5), strict=True):  # another batch: the network may add in another order
        assert alone(task, image, net)["probabilities"] == pytest.approx(row["probabilities"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 14, 40])
def test_outputs_of_one_batch_become_the_same_columns_alone_and_as_a_block(count):
    logits = torch.randn(500, count, generator=torch.Generator().manual_seed(0)) * 3
    for activation in ("softmax", "sigmoid", "none"):
        classes = [f"c{n}" for n in range(count)]
        task = make_task(package(classes, activation=activation, threshold=0.6))
        states = [task.begin(Unit({"input": images(1)[0]}, {"input": {}})) for _ in logits]
        for state, one in zip(states, logits, strict=True):
            task.collect(state, 0, None, {"output": one})
        each = [task.finish(state).columns for state in states]
        assert rows({key: [row[key] for row in each] for key in each[0]}, task.item_columns) == rows(
            task.finish_block({"output": logits}), task.item_columns
        )


def test_probabilities_and_labels_are_those_of_plain_pytorch():
    data, net = images(40), network()
    found = rows(block(make_task(package(**IMAGENET)), data, net), make_task(package()).item_columns)
    with torch.inference_mode():
        wanted = net(plain(data, IMAGENET)).softmax(1)
    assert torch.equal(torch.tensor([row["probabilities"] for row in found]), wanted)
    assert [row["label"] for row in found] == [CLASSES[n] for n in wanted.argmax(1).tolist()]
    assert [row["probability"] for row in found] == wanted.max(1).values.tolist()
    assert {row["abstained"] for row in found} == {False}
    assert {row["labels"] for row in found} == {None}


def test_sigmoid_is_that_of_pytorch():
    logits = torch.linspace(-20, 20, 999).reshape(333, 3)
    task = make_task(package(activation="sigmoid"))
    found = task.finish_block({"output": logits})["probabilities"].flatten().to_numpy()
    assert found == pytest.approx(logits.sigmoid().numpy().ravel(), abs=2e-7)


def test_below_the_threshold_no_class_is_named():
    given = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    task = make_task(package(activation="none", threshold=0.6))
    found = rows(task.finish_block({"output": given}), task.item_columns)
    assert [row["label"] for row in found] == [None, "mild", "severe"]  # 0.6 reaches 0.6, as float32 too
    assert [row["abstained"] for row in found] == [True, False, False]
    assert found[0]["probability"] == np.float32(0.5)


def test_classes_that_do_not_exclude_each_other_are_listed():
    given = torch.tensor([[2.0, -1.0, 0.0], [-1.0, -2.0, -3.0]])
    task = make_task(package(activation="sigmoid"))
    found = rows(task.finish_block({"output": given}), task.item_columns)
    assert [row["labels"] for row in found] == [["none", "severe"], []]
    assert [row["label"] for row in found] == [None, None]
    assert [row["abstained"] for row in found] == [False, True]
    assert found[0]["probability"] == pytest.approx(1 / (1 + np.exp(-2)))
    task = make_task(package(activation="sigmoid"), options={"threshold": 0.8})
    assert rows(task.finish_block({"output": given}), task.item_columns)[0]["labels"] == ["none"]


def test_columns_of_a_block_are_arrow_and_of_the_types_of_the_table():
    columns = make_task(package()).finish_block({"output": torch.zeros(4, 3)})
    schema = make_task(package()).item_columns
    assert set(columns) == set(schema.names)
    assert all(isinstance(values, pa.Array) and len(values) == 4 for values in columns.values())
    assert all(values.type == schema.field(name).type for name, values in columns.items())


def test_images_of_several_sizes_share_a_batch_once_they_are_of_one():
    task = make_task(package(**IMAGENET, resize=[8, 8]))
    mixed = [*images(2), *images(1, (3, 9, 30)), *images(1, dtype=np.uint16), *images(1, seed=3)]
    windows = [task.windows(task.begin(Unit({"input": image}, {"input": {}})), 0)[0] for image in mixed]
    assert {window.bucket for window in windows} == {(3, 8, 8)}
    together = task.encode(0, mixed, torch.device("cpu"))["x"]
    for place, image in enumerate(mixed):
        assert torch.equal(together[place : place + 1], task.encode_block(image[None], {}, torch.device("cpu"))["x"])


def item(shape, row=0, **fields):
    return {
        "shape": list(shape),
        "row": row,
        "geometry": None,
        "signal": None,
        "sequence": None,
        "modality": "OP",
        **fields,
    }


VOLUME = item((3, 20, 24), row=None, geometry={"spacing": [1.0, 1.0, 1.0], "orientation": "RAS"})
IMAGE = item((3, 20, 24), geometry={"spacing": [0.01, 0.01], "orientation": None})


def test_a_volume_is_never_taken_for_an_image_nor_the_reverse():
    task = make_task(package())
    assert task.refuse({"input": IMAGE}) is None
    assert task.refuse({"input": VOLUME})[0] == "not_an_image"
    assert task.refuse({"input": item((500,), sequence={"length": 500})})[0] == "not_an_image"
    segment = make_task(
        package(["brain"], passes=[{"net": "net", "grid": [8, 8, 8], "channel": 0}], axes="xyz", threshold=0.5),
        "segment",
    )
    assert segment.refuse({"input": IMAGE})[0] == "not_a_volume"
    assert segment.refuse({"input": VOLUME}) is None
    for axes, good, bad in (("cyx", IMAGE, VOLUME), ("zyx", VOLUME, IMAGE)):
        assert contract.refuse(InputContract(axes=axes), good) is None
        assert contract.refuse(InputContract(axes=axes), bad)[0] == "wrong_axes"


@pytest.mark.parametrize(
    ("options", "shape", "code"),
    [
        (IMAGENET, (1, 20, 24), "wrong_channels"),
        ({"channels": [0, 0, 2]}, (2, 20, 24), "wrong_channels"),
        ({"crop": [32, 8]}, (3, 20, 24), "too_small"),
        ({"resize": [16, 16], "crop": [17, 8]}, (3, 20, 24), "too_small"),
    ],
)
def test_an_image_that_does_not_fit_the_network_is_refused_before_any_compute(options, shape, code):
    task = make_task(package(**options))
    assert task.refuse({"input": item(shape)})[0] == code
    with pytest.raises(ItemError) as caught:
        task.begin(Unit({"input": images(1, shape)[0]}, {"input": {}}))
    assert caught.value.code == code


def test_grey_images_fit_a_network_of_three_channels_if_the_package_says_so():
    task = make_task(package(**IMAGENET, channels=[0, 0, 0]))
    assert task.refuse({"input": item((1, 20, 24))}) is None
    assert task.encode_block(images(2, (1, 20, 24)), {}, torch.device("cpu"))["x"].shape == (2, 3, 20, 24)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_a_network_with_other_outputs_than_classes_gives_no_result(shape):
    task = make_task(package())
    with pytest.raises(ItemError) as caught:
        task.finish_block({"output": torch.zeros(5, *shape)})
    assert caught.value.code == "wrong_outputs"
    with pytest.raises(ItemError) as caught:
        alone(task, images(1)[0], lambda x: torch.zeros(1, *shape))
    assert caught.value.code == "wrong_outputs"


@pytest.mark.parametrize("said", [{"std": [1.0, 0.0, 1.0]}, {"resize": [0, 5]}, {"channels": [-1]}, {"threshold": 2.0}])
def test_options_that_cannot_be_meant_are_said_at_once(said):
    with pytest.raises(SpecError, match=next(iter(said))):
        make_task(package(**said))


def test_a_job_may_change_the_threshold_and_nothing_of_the_network():
    assert make_task(package(), options={"threshold": 0.9}).options.threshold == 0.9
    with pytest.raises(SpecError, match="scale belong to the networks"):
        make_task(package(), options={"scale": 2.0})
    with pytest.raises(SpecError, match="names of the classes"):
        make_task(package([]))
