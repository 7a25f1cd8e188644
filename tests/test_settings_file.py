"""Settings from files: what they change, what they may hold, and what is refused."""

import json
from dataclasses import replace

import pytest
import yaml

from mmdd_ray import cli
from mmdd_ray.cli.arguments import parse
from mmdd_ray.engine.run_dir import RunDir
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.engine.settings_file import SavedSettings, as_yaml
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.edge import presets

EDGE = METHODS["edge_cc3m"]


def edge(*arguments):
    return parse("mmdd edge", EDGE.presets, [str(one) for one in arguments], EDGE.job)


def write(tmp_path, text, name="own.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_command_line_counts_more_than_the_file_and_the_file_more_than_the_preset(tmp_path):
    file = write(tmp_path, "finetune:\n  steps: 7\n  learning_rate: 1e-3\nrun:\n  seed: 3\n")
    preset, settings = edge("cc3m", "--config", file, "--finetune.steps", 9)
    expected = presets.cc3m()
    finetune = replace(expected.finetune, steps=9, learning_rate=1e-3)
    assert (preset, settings) == (
        "cc3m",
        replace(expected, finetune=finetune, run=replace(expected.run, seed=3)),
    )


def test_a_file_may_name_its_preset_and_the_command_line_another(tmp_path):
    file = write(tmp_path, "preset: cc3m\n")
    assert edge("--config", file) == ("cc3m", presets.cc3m())
    assert edge("local", f"--config={file}") == ("local", presets.local())


@pytest.mark.parametrize("job", METHODS)
def test_what_is_printed_gives_the_same_settings_for_every_preset(job, tmp_path, capsys):
    method = METHODS[job]
    for name in method.presets:
        with pytest.raises(SystemExit) as stop:
            parse("mmdd", method.presets, [name, "--run.seed", "5", "--print_config"], job)
        assert stop.value.code == 0
        file = write(tmp_path, capsys.readouterr().out)
        wanted = parse("mmdd", method.presets, [name, "--run.seed", "5"], job)
        assert parse("mmdd", method.presets, ["--config", str(file)], job) == wanted


def test_a_run_goes_on_with_its_own_settings_file(tmp_path):
    settings = edge("--run.dir", tmp_path / "run", "--synthesis.pairs", 12)[1]
    RunDir.open(settings.run.dir, EDGE.job, "local", settings).close()
    assert edge("--config", tmp_path / "run" / "settings.json") == ("local", settings)


def test_several_sources_are_a_list(tmp_path):
    file = write(tmp_path, "data:\n  uri:\n    - a/0.tar\n    - b/\n  caption_columns: [text]\n")
    settings = edge("--config", file)[1]
    assert (settings.data.uri, settings.data.caption_columns) == ("a/0.tar::b/", ("text",))


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_changes_nothing(text, tmp_path):
    assert edge("--config", write(tmp_path, text)) == ("local", presets.local())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("finetune:\n  stepz: 3\n", "finetune.stepz, which is no setting of this job; did you mean finetune.steps?"),
        ("fintune:\n  steps: 3\n", "has fintune, which is no setting of this job; did you mean finetune?"),
        ("finetune: 3\n", "has finetune=3, but finetune is a section"),
        ("finetune:\n  steps: many\n", "has finetune.steps='many': "),
        ("finetune:\n  steps: -1\n", "greater than or equal to 0"),
        ("finetune:\n  parameters: all\n", "input should be 'difffit', 'lora' or 'full'"),
        ("finetune:\n  steps: 1\n  steps: 2\n", "has steps twice, again in line 3; keep one"),
        ("finetune: [\n", "is neither YAML nor JSON"),
        ("\x00\x01", "is neither YAML nor JSON"),
        ("- a\n", "holds no settings"),
        ("run:\n  seed: yes\n", "has run.seed=True, which is no number or text"),
        ("on: 3\n", "has the name True, which is no text"),
        ("preset: [a]\n", "has the name ['a'], which is no text"),
        ("synthesis.pairs: 5\nsynthesis:\n  pairs: 6\n", "has synthesis.pairs twice"),
        ("settings:\n  run:\n    seed: 5\nsynthesis:\n  pairs: 7\n", "has settings, and synthesis beside them"),
        ("job: vlcp_imagenette\n", "holds settings of the job vlcp_imagenette, not of edge_cc3m"),
        ("preset: flickr\n", "unknown preset flickr"),
        ("data:\n  uri: s3://[redacted]@bucket/x\n", "because credentials are never saved"),
    ],
)  # fmt: skip
def test_what_a_file_must_not_hold_is_refused(text, says, tmp_path):
    with pytest.raises(UserError) as refused:
        edge("--config", write(tmp_path, text))
    assert says in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: there is no such file"):
        edge("--config", tmp_path / "none.yaml")


def test_json_serves_as_well(tmp_path):
    file = write(tmp_path, json.dumps({"run": {"seed": 4}}, indent="\t"), "own.json")
    assert edge("--config", file)[1].run.seed == 4
    with pytest.raises(UserError, match="neither YAML nor JSON"):
        edge("--config", write(tmp_path, "{", "broken.json"))
    with pytest.raises(UserError, match="has seed twice; keep one"):
        edge("--config", write(tmp_path, '{"run": {"seed": 4, "seed": 5}}', "twice.json"))


def test_credentials_are_not_printed():
    settings = replace(presets.local(), data=replace(presets.local().data, uri="s3://me:pw@bucket/x"))
    text = as_yaml(settings, SavedSettings("edge_cc3m", "local"))
    assert "pw" not in text
    assert yaml.safe_load(text)["data"] == resolved(settings)["data"]


def test_a_refused_file_is_one_line_with_status_2(tmp_path, capsys):
    file = write(tmp_path, "finetune:\n  stepz: 3\n")
    assert cli.main(lambda: cli.start("edge_cc3m", ["--config", str(file)], "mmdd edge")) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: config=")
    assert shown.count("\n") == 1
