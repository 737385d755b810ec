import pytest

from diastole.jobs.spec import job_schema, load_job, parse_job
from diastole.lake.errors import SpecError

BASE = {"name": "j", "dataset": "d", "model": "m", "output": "o"}


def test_a_dataset_at_the_top_stands_for_one_role():
    short = parse_job({**BASE, "where": "site = 'A'"})
    assert short == parse_job(
        {"name": "j", "model": "m", "output": "o", "inputs": {"input": {"dataset": "d", "where": "site = 'A'"}}}
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "colour: extra inputs are not permitted; known keys: dataset, where"),
        ({"resources": {"workers": -1}}, "resources.workers: input should be greater than or equal to 0"),
        ({"resources": {"device": "tpu"}}, "resources.device"),
        ({"resources": {"attempts": 0}}, "resources.attempts"),
        ({"output": "../x"}, "output"),
        ({"name": "A b"}, "name"),
        ({"options": 3}, "options"),
        ({"dataset": None}, "dataset"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line_with_its_place(change, said):
    with pytest.raises(SpecError) as caught:
        parse_job({**BASE, **change}, "job.yaml")
    assert str(caught.value).startswith("job.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resources_are_no_part_of_what_a_job_means():
    base = parse_job(BASE).job_digest
    assert parse_job({**BASE, "resources": {"workers": 7, "threads": 3, "batch": 2}}).job_digest == base
    for change in ({"options": {"x": 1}}, {"where": "1 = 1"}, {"model": "n"}, {"purpose": "research"}):
        assert parse_job({**BASE, **change}).job_digest != base


def test_a_frozen_job_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_job(BASE).model = "other"


def test_yaml_that_would_make_objects_is_not_read(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']")
    with pytest.raises(SpecError, match="not YAML"):
        load_job(path)


def test_every_key_of_the_schema_is_described():
    schema = job_schema()
    for kind in (schema, *schema["$defs"].values()):
        for key, value in kind["properties"].items():
            assert value.get("description"), key
