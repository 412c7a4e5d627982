"""Flag beats file beats preset beats default, and what a settings file may not say."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml

from convsmith.cli.shell import flags, options, settings
from convsmith.cli.shell.options import Work, option
from convsmith.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class Arguments(Work):
    """Do something."""

    data: str = option(help="what to read", metavar="DATA")
    lr: float = option(0.1, "step size", group="optimisation")
    epochs: int | None = option(None, "passes over the data")
    schedule: Literal["cosine", "step"] = option("cosine", "how lr falls")
    flip: bool = option(True, "mirror images")
    fractions: tuple[float, ...] = option((0.5, 1.0), "parts")
    crop: tuple[int, int] = option((0, 0), "two sides")
    images: tuple[str, ...] = option((), "files", positional=True, metavar="IMAGE")


def parse(*words):
    return options.parse("verb", Arguments, words)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_and_flags():
    found = parse("--data", "digits", "a.png", "b.png", "--no-flip", "--fractions", "0.1", "0.2")
    assert (found.data, found.lr, found.epochs, found.flip) == ("digits", 0.1, None, False)
    assert found.images == ("a.png", "b.png")
    assert found.fractions == (0.1, 0.2)
    assert (found.seed, found.device, found.resume) == (0, "auto", False)


def test_bare_words_may_stand_on_both_sides_of_a_flag():
    """Regression: those after the flag were refused, in another voice than every other error."""
    assert parse("a.png", "--json", "b.png", "--data", "x", "--flip").images == ("a.png", "b.png")


def test_flags_of_one_list_are_joined_and_of_any_other_the_last_counts():
    """Regression: the last flag of a list won silently, --set a=1 --set b=2 lost a=1."""
    found = parse(
        "--data=x", "--fractions", "0.1", "0.2", "--seed", "3", "--no-flip", "--fractions=0.3", "--seed=4", "--flip"
    )
    assert (found.fractions, found.seed, found.flip) == ((0.1, 0.2, 0.3), 4, True)


def test_after_two_dashes_every_word_is_a_bare_one():
    found = parse("--data", "x", "--fractions", "0.1", "--", "a.png", "-b.png", "--json", "-h", "--")
    assert (found.images, found.json, found.fractions) == (("a.png", "-b.png", "--json", "-h", "--"), False, (0.1,))


def test_flag_beats_file_beats_preset_beats_default(file, monkeypatch):
    monkeypatch.setattr(
        settings, "presets", lambda verb=None: {"verb-small": "data: preset\nlr: 1\nepochs: 1\nseed: 1\n"}
    )
    path = file("lr: 2\nepochs: 2\n")
    found = parse("--preset", "verb-small", "--config", path, "--epochs", "3")
    assert (found.data, found.seed, found.lr, found.epochs, found.schedule) == ("preset", 1, 2.0, 3, "cosine")
    assert parse(f"--config={path}", "--data", "x").lr == 2.0


def test_a_flag_takes_the_place_of_what_it_excludes_in_a_file(file):
    """Regression: --steps beside a preset that says epochs was "not both", to someone who had given one."""
    from convsmith.cli.verbs import compress, train

    path = file("data: digits\nepochs: 20\nlr: 0.3\n")
    found = options.parse("train", train.Arguments, ["--config", path, "--steps", "5"])
    assert (found.steps, found.epochs, found.lr) == (5, None, 0.3)
    path = file("data: digits\nmethod: low-rank\nmodel: x\nkeep_macs: 0.5\n")
    found = options.parse("compress", compress.Arguments, ["--config", path, "--keep-params=0.3"])
    assert found.budgets() == {"keep_macs": None, "keep_params": 0.3, "keep_latency": None}


def test_a_boolean_from_a_file_can_be_taken_back_by_a_flag(file):
    path = file("data: x\nflip: false")
    assert parse("--config", path).flip is False
    assert parse("--config", path, "--flip").flip is True


def test_the_resolved_settings_repeat_the_run(file):
    first = parse("--data", "x", "--lr", "1e-3", "--fractions", "0.25", "--seed", "7")
    again = parse("--config", file(yaml.safe_dump(options.resolved("verb", first))))
    assert options.resolved("verb", again) == options.resolved("verb", first)
    assert again.lr == 1e-3


def test_numbers_that_yaml_reads_as_text_are_numbers(file):
    assert parse("--config", file("data: x\nlr: 1e-3")).lr == 1e-3
    assert parse("--config", file("data: x\nlr: 2")).lr == 2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("leaning_rate: 1", "no setting of this name"),
        ("epoch: 1", "did you mean 'epochs'"),
        ("epochs: many", "epochs must be a whole number or null"),
        ("epochs: 1.5", "epochs must be a whole number or null"),
        ("epochs: true", "epochs must be a whole number or null"),
        ("lr: fast", "lr must be a number"),
        ("schedule: linear", "schedule must be one of cosine, step"),
        ("flip: 1", "flip must be true or false"),
        ("fractions: 0.5", "fractions must be a list, each a number"),
        ("crop: [1, 2, 3]", "crop must be a list of 2, each a whole number"),
        ("resume: true", "no setting of this name"),
        ("lr: 1\nseed: 2\nlr: 3", "keep one"),
        ("data-root: a\ndata_root: b", "keep one"),
        ("verb: adapt", "for another verb"),
        ("- a\n- b", "'key: value' lines"),
        ("just words", "'key: value' lines"),
        ("a: [1, 2", "must be YAML"),
        ("\tlr: 1", "must be YAML"),
        ("lr: !!python/object/apply:os.getcwd []", "must be YAML"),
    ],
)
def test_a_bad_file_is_one_clear_error(text, said, file):
    with pytest.raises(InvalidArgument) as caught:
        parse("--config", file(text), "--data", "x")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_file_that_is_missing_or_binary_is_an_error(tmp_path):
    with pytest.raises(InvalidArgument, match="cannot be read"):
        parse("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InvalidArgument, match="not a text file"):
        parse("--config", str(tmp_path / "image.png"))


def test_an_unknown_preset_is_an_error():
    with pytest.raises(InvalidArgument, match="no preset for verb"):
        parse("--preset", "nothing")


def test_resume_needs_a_run_folder_and_takes_its_settings(tmp_path):
    with pytest.raises(InvalidArgument, match="needs the run folder"):
        parse("--resume")
    with pytest.raises(InvalidArgument, match="nothing to resume"):
        parse("--resume", "--out", str(tmp_path))
    (tmp_path / "config.yaml").write_text("verb: verb\ndata: digits\nlr: 0.5\nout: elsewhere\n")
    found = parse("--resume", "--out", str(tmp_path))
    assert (found.data, found.lr, found.out, found.resume) == ("digits", 0.5, str(tmp_path), True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "x", "--lr", "fast"], ["must be a number", "--lr", "'fast'"]),
        (["--data", "x", "--lr"], ["needs a value", "--lr"]),
        (["--data", "x", "--schedule", "linear"], ["must be one of", "--schedule", "'linear'"]),
        (["--data", "x", "--json=yes"], ["takes no value", "--json=yes"]),
        (["--data", "x", "--crop", "1"], ["needs 2 values", "--crop", "1"]),
        (["--data", "x", "--fractions", "--flip"], ["needs a value", "--fractions"]),
        (["--data", ""], ["must be text", "--data", "''", "leave it out"]),
        (["--data", "x", ""], ["must be text", "IMAGE", "''"]),
        ([], ["needs --data"]),
        (["--dta", "y"], ["no flag of this name", "--dta", "did you mean --data?"]),
        (["--learning-rate", "1"], ["no flag of this name", "did you mean --lr?"]),
        (["--LR", "1"], ["no flag of this name", "did you mean --lr?"]),
        (["--settings", "f.yaml"], ["no flag of this name", "did you mean --config?"]),
        (["-x"], ["no flag of this name", "--help"]),
    ],
)
def test_a_bad_flag_is_one_clear_error(words, said):
    with pytest.raises(InvalidArgument) as caught:
        parse(*words)
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("said", "spoken"),
    [
        ("say use_target_labels=True as well", "say --use-target-labels as well"),
        ('use sites="conv" or sites=None', "use --sites conv or no --sites"),
        ("fewer warmup_steps, or warmup_share=0.1", "fewer --warmup-steps, or --warmup-share 0.1"),
        ("pass size= to resize them", "pass --size to resize them"),
        ("resume=False, or size matters", "--no-resume, or size matters"),
        ("--set size=3, --size 4 or other_size=2", "--set size=3, --size 4 or other_size=2"),
    ],
)
def test_an_error_of_the_library_names_flags(said, spoken):
    names = ("use_target_labels", "sites", "warmup_steps", "warmup_share", "size", "resume")
    form = dataclasses.make_dataclass("Form", [(name, int, options.option(0, "x")) for name in names])
    error = InvalidArgument(said, argument="size", given=3, hint=said)
    flags.name_flags(error, form())
    assert str(error) == f"{spoken}\n  argument: --size SIZE\n  given:    3\n  hint:     {spoken}"


def test_every_packaged_preset_is_valid_and_opens_with_the_command_that_runs_it():
    from convsmith.cli import main
    from convsmith.cli.verbs import init

    assert settings.presets()
    for name, text in settings.presets().items():
        verb = text.split()[2]
        assert verb in main.Program().verbs(), name
        settings.checked(verb, main.Program().load(verb).Arguments, text, where=name)
        assert text.startswith((f"# convsmith {verb} --config {name}.yaml", f"# convsmith {verb} --preset {name} ")), (
            name
        )
        assert f"\nverb: {verb}\n" in text, name
        assert settings.presets(verb)[name] == text
        assert init.purpose(text), name


def test_an_error_that_quotes_a_value_names_its_own_flag_and_no_other_of_that_value():
    error = InvalidArgument("no such site", argument="sites='auto'", given=3)
    form = dataclasses.make_dataclass(
        "Form", [(name, str, options.option("auto", "x")) for name in ("device", "sites")]
    )
    flags.name_flags(error, form())
    assert "argument: --sites SITES\n" in str(error)
