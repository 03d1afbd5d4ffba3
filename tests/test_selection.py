"""The right checkpoints of a directory, in the right order, and a reason for every one that is left out."""

import json
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpttool.errors import NotFoundError, UnreadableError, UsageError
from ckpttool.selection import opening
from ckpttool.selection.discovery import discover, from_paths
from ckpttool.selection.metrics import mode_of, name_metrics
from ckpttool.tensors import Checkpoint

opened = []


@pytest.fixture(autouse=True)
def json_checkpoints(monkeypatch):
    """Checkpoints that are JSON files: what selection asks of a format, and nothing else."""

    def open_checkpoint(path, *, section=None, snapshot=None, weights=()):
        opened.append(Path(path).name)
        weights = [file for file in sorted(Path(path).rglob("*")) if file.suffix in {".safetensors", ".ckpt", ".pt"}]
        try:
            content = json.loads((weights[0] if weights else Path(path)).read_text())
        except (ValueError, OSError) as error:
            raise UnreadableError(f"{path}: truncated", path=path) from error
        return Checkpoint(
            Path(path),
            "fake",
            {},
            step=content.get("step"),
            values={key: value for key, value in content.items() if key not in {"provenance", "pad"}},
            provenance=content.get("provenance"),
        )

    opened.clear()
    monkeypatch.setattr(opening, "open_checkpoint", open_checkpoint)


def save(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def names(found):
    return [entry.name for entry in found.entries]


def reasons(found):
    return {each.path.name: each.reason for each in found.skipped}


@pytest.fixture
def run(tmp_path):
    """Ten checkpoints of different padding, each a little larger than the one before."""
    for step in range(100, 1100, 100):
        save(tmp_path / f"model_step_{step}.pt", step=step, loss=1000 / step, pad="x" * (step // 100))
    return tmp_path


# --- order -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 10**8), min_size=1, max_size=8, unique=True),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_is_numeric_whatever_padding_time_stamps_and_listing(tmp_path_factory, steps, rng, stated):
    directory = tmp_path_factory.mktemp("run")
    shuffled = list(steps)
    rng.shuffle(shuffled)
    for step in shuffled:
        path = directory / f"m_step_{step:0{rng.choice([1, 4, 9])}d}.pt"
        save(path, **({"step": step} if stated else {}))
        os.utime(path, (rng.randrange(10**9), rng.randrange(10**9)))
    found = discover(directory)
    assert [entry.step for entry in found.entries] == sorted(steps)
    count = rng.randint(1, len(steps))
    assert [entry.step for entry in found.last(count).entries] == sorted(steps)[-count:]


def test_the_content_s_step_counts_where_names_count_epochs(tmp_path):
    for epoch in (9, 10, 11):
        save(tmp_path / f"checkpoint{epoch}.pt", step=epoch * 500)
    found = discover(tmp_path)
    assert [(entry.step, entry.where_step, entry.unit) for entry in found.entries] == [
        (4500, "content", "step"),
        (5000, "content", "step"),
        (5500, "content", "step"),
    ]


def test_names_count_where_contents_say_nothing(tmp_path):
    for epoch in (9, 10, 11):
        save(tmp_path / f"epoch_{epoch}.pth", epoch=epoch)
    found = discover(tmp_path)
    assert [(entry.step, entry.where_step, entry.unit) for entry in found.entries] == [
        (9, "name", "epoch"),
        (10, "name", "epoch"),
        (11, "name", "epoch"),
    ]
    assert found.describe() == "3 checkpoints, epochs 9 to 11"


def answers(hint):
    """What a hint says to type, as the arguments of `discover`."""
    found = []
    for answer in re.split(r" or |; |, or ", hint):
        options = re.findall(r"(include|exclude)='([^']*)'", answer)
        if options:
            found.append({kind: [glob for which, glob in options if which == kind] for kind, _ in options})
    return found


FAMILIES = {
    "fairseq": (["checkpoint9.pt", "checkpoint10.pt"], ["checkpoint_9_850.pt", "checkpoint_10_950.pt"]),
    "fairseq, in shards": (
        ["checkpoint9-shard0.pt", "checkpoint10-shard0.pt"],
        ["checkpoint_9_850-shard0.pt", "checkpoint_10_950-shard0.pt"],
    ),
    "icefall": (["epoch-9.pt", "epoch-10.pt"], ["checkpoint-850.pt", "checkpoint-950.pt"]),
    "espnet1": (["snapshot.ep.9", "snapshot.ep.10"], ["snapshot.iter.850", "snapshot.iter.950"]),
    "wenet": (["epoch_9.pt", "epoch_10.pt"], ["step_850.pt", "step_950.pt"]),
    "mmengine": (["epoch_9.pth", "epoch_10.pth"], ["iter_850.pth", "iter_950.pth"]),
    "torchtune": (["epoch_9", "epoch_10"], ["step_850", "step_950"]),
    "funasr": (["model.pt.ep9", "model.pt.ep10"], ["model.pt.ep9.850", "model.pt.ep10.950"]),
    "lightning": (
        ["epoch=9.ckpt", "epoch=10.ckpt"],
        ["epoch=9-step=850.ckpt", "val_loss=0.5-epoch=10-step=950.ckpt"],
    ),
    "edm2": (["net-900-0.050.pkl", "net-1000-0.050.pkl"], ["net-850-0.100.pkl", "net-950-0.100.pkl"]),
    "guided-diffusion": (["model000900.pt", "model001000.pt"], ["ema_0.9999_000850.pt", "ema_0.9999_000950.pt"]),
}


@pytest.mark.parametrize("framework", FAMILIES)
@pytest.mark.parametrize("comparable", ["steps inside", "no steps inside", "equal steps"])
def test_two_families_of_checkpoints_are_a_question_with_its_answers(tmp_path, framework, comparable):
    """The ends of epochs, and updates between them: their last three would be of uneven spacing."""
    epochs, updates = FAMILIES[framework]
    for step, name in zip((900, 1000, 850, 950), epochs + updates, strict=True):
        step = {"steps inside": step, "no steps inside": None, "equal steps": step // 100 * 100}[comparable]  # noqa: PLW2901
        inside = "model.safetensors" if framework == "torchtune" else "."
        save(tmp_path / name / inside, step=step)
    with pytest.raises(UsageError, match=f"2 families of checkpoints: 2 like {epochs[1]} and 2 like .*") as caught:
        discover(tmp_path).last(2)
    given = answers(caught.value.hint)
    taken = [names(discover(tmp_path, **options).last(2)) for options in given[:2]]
    assert sorted(taken) == sorted([epochs, updates])
    assert len(given) == (3 if "takes all of them" in caught.value.hint else 2)
    for verb in (lambda: discover(tmp_path).last_default(), lambda: discover(tmp_path).every(2).last(1)):
        with pytest.raises(UsageError, match="2 families of checkpoints"):
            verb()


def test_both_families_are_taken_in_one_order_where_that_is_asked_for(tmp_path):
    for name, step in (("checkpoint1.pt", 500), ("checkpoint_2_700.pt", 700), ("checkpoint2.pt", 1000)):
        save(tmp_path / name, step=step, loss=1000 - step)
    everything = ["checkpoint1.pt", "checkpoint_2_700.pt", "checkpoint2.pt"]
    assert names(discover(tmp_path)) == everything
    with pytest.raises(UsageError) as caught:
        discover(tmp_path).last(3)
    assert answers(caught.value.hint)[2] == {"include": ["*"]}
    both = discover(tmp_path, include=["*"]).last(3)
    assert names(both) == everything
    (note,) = both.notes
    assert note.startswith(
        "2 families of checkpoints: 2 like checkpoint2.pt and 1 like checkpoint_2_700.pt, in one order"
    )
    assert discover(tmp_path, include=["checkpoint?.pt"]).last(2).notes == ()
    # The newest is the newest, and the best are the best, of whatever kind.
    assert names(discover(tmp_path).last(1)) == ["checkpoint2.pt"]
    assert names(discover(tmp_path).best(2, "loss", "min")) == ["checkpoint_2_700.pt", "checkpoint2.pt"]
    # One kind is left: no question.
    assert names(discover(tmp_path).between(from_step=600).exclude("checkpoint?.pt").last(1)) == ["checkpoint_2_700.pt"]
    assert names(discover(tmp_path).between(to_step=600).open()) == ["checkpoint1.pt"]


def test_what_cannot_be_ordered_is_not_taken_together(tmp_path):
    for name, step in (("checkpoint1.pt", None), ("checkpoint_2_700.pt", 700), ("checkpoint_3_800.pt", 800)):
        save(tmp_path / name, step=step)
    with pytest.raises(UsageError) as caught:
        discover(tmp_path)
    assert "include='*'" not in caught.value.hint
    with pytest.raises(UsageError, match="epochs and others steps"):
        discover(tmp_path, include=["*"])


def test_a_directory_of_unfinished_checkpoints_says_what_they_lack(tmp_path):
    for step in (10, 20):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "__0_0.distcp").write_text("")
    with pytest.raises(NotFoundError) as caught:
        discover(tmp_path)
    assert caught.value.hint.startswith("As torchtitan has it, step-10 is unfinished or not a checkpoint: no .metadata")


def test_numbered_runs_that_hold_checkpoints_are_a_question(tmp_path):
    """Each with the model that it ended in: their average would be of two runs."""
    for run in ("s1", "s2"):
        save(tmp_path / run / "model.safetensors")
        for step in (10, 20):
            save(tmp_path / run / f"checkpoint-{step}" / "model.safetensors", step=step)
    with pytest.raises(UsageError, match=r"further down: s1 \(2 checkpoints\), s2 \(2 checkpoints\)"):
        discover(tmp_path)


def test_one_checkpoint_is_never_the_last_two(tmp_path):
    save(tmp_path / "run" / "checkpoint-10" / "model.safetensors", step=10)
    with pytest.raises(NotFoundError, match="there is only 1 checkpoint, step 10") as caught:
        discover(tmp_path / "run").last(2)
    assert caught.value.hint == "last=1 writes it as it is."
    with pytest.raises(NotFoundError, match="run/checkpoint-10: one checkpoint, and the last 2 were asked for"):
        discover(tmp_path / "run" / "checkpoint-10").last(2)


@pytest.mark.parametrize("folder", ["model_and_optim", "weights"])
def test_a_marker_one_level_down_marks_a_finished_checkpoint(tmp_path, folder):
    """OLMo-core's and NeMo's directories of torch.distributed.checkpoint: its `.metadata` is written last."""
    name = "step{}" if folder == "model_and_optim" else "a--val_loss=1.0-epoch=0-step={}"
    for step in (10, 20, 30):
        save(tmp_path / name.format(step) / folder / "__0_0.distcp")
        save(tmp_path / name.format(step) / folder / "x.pt", step=step)
        if step < 30:
            save(tmp_path / name.format(step) / folder / ".metadata")
    found = discover(tmp_path)
    assert [entry.step for entry in found.entries] == [10, 20]
    assert "unfinished" in reasons(found)[name.format(30)]


def test_a_counter_inside_that_does_not_rise_is_not_trusted_and_said(tmp_path):
    for epoch, step in [(1, 120), (2, 120), (3, 120)]:
        save(tmp_path / f"epoch_{epoch}.pth", step=step)
    found = discover(tmp_path)
    assert [entry.step for entry in found.entries] == [1, 2, 3]
    assert "do not rise" in found.warnings[0]


def test_a_name_that_contradicts_its_content_is_warned_about(run):
    save(run / "model_step_500.pt", step=900)
    assert any("model_step_500.pt" in warning for warning in discover(run).last(8).warnings)


def test_speechbrain_directories_are_ordered_by_the_date_in_their_name(tmp_path):
    for name in ("CKPT+2024-01-10+09-00-00+00", "CKPT+2024-01-09+10-00-00+00"):
        save(tmp_path / name / "model.ckpt")
        (tmp_path / name / "CKPT.yaml").write_text("unixtime: 1.0\nWER: 3.5\n")
    found = discover(tmp_path)
    assert names(found) == ["CKPT+2024-01-09+10-00-00+00", "CKPT+2024-01-10+09-00-00+00"]
    assert found.entries[0].step is None
    with pytest.raises(UsageError, match="no step"):
        found.between(1)
    assert len(found.best(1, "WER")) == 1


def test_few_files_are_opened_in_a_long_directory(tmp_path):
    for step in range(500):
        save(tmp_path / f"m_step_{step}.pt", step=step)
    opened.clear()
    found = discover(tmp_path)
    assert set(opened) == {"m_step_0.pt", "m_step_499.pt"}
    assert len(found.last(5)) == 5
    assert sorted(opened) == [f"m_step_{step}.pt" for step in (0, 495, 496, 497, 498, 499)]


# --- aliases, averages, leftovers ------------------------------------------------------------------------------


def link_symbolic(source, alias):
    alias.symlink_to(source.name)


def copy(source, alias):
    alias.write_bytes(source.read_bytes())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (link_symbolic, "the same file as model_step_1000.pt (symbolic link)"),
        (os.link, "the same file as model_step_1000.pt (hard link)"),
        (copy, "a copy of model_step_1000.pt (same size, same samples)"),
    ],
)
@pytest.mark.parametrize("alias", ["last.pt", "model_best.pt", "latest.pt", "final.pt", "something.pt"])
def test_an_alias_of_a_numbered_checkpoint_is_left_out_and_said_whose(run, make, reason, alias):
    make(run / "model_step_1000.pt", run / alias)
    found = discover(run)
    assert len(found) == 10
    assert reasons(found)[alias] == reason


def test_a_copy_without_a_step_is_told_by_its_bytes(tmp_path):
    for step in (1, 2):
        save(tmp_path / f"m_step_{step}.pt", w=step)
    copy(tmp_path / "m_step_2.pt", tmp_path / "best.pt")
    assert reasons(discover(tmp_path))["best.pt"] == "a copy of m_step_2.pt (same size, same samples)"


def test_an_alias_of_nothing_numbered_says_its_step(run):
    save(run / "last.pt", step=1050)
    assert reasons(discover(run))["last.pt"].endswith("(step 1050)")


def test_a_numbered_link_to_a_numbered_checkpoint_is_no_second_one(run):
    (run / "model_step_1100.pt").symlink_to("model_step_1000.pt")
    found = discover(run)
    assert names(found)[-1] == "model_step_1000.pt"
    assert "symbolic link" in reasons(found)["model_step_1100.pt"]


def test_an_earlier_average_is_known_by_what_it_says_of_itself(run):
    save(run / "model_step_2000.pt", step=1000, provenance={"tool": "ckpttool"})
    found = discover(run).last(2)
    assert names(found) == ["model_step_900.pt", "model_step_1000.pt"]
    assert "average" in reasons(found)["model_step_2000.pt"]


def test_an_output_directory_of_last_time_does_not_disturb(run):
    save(run / "avg" / "model_step_1000.pt", step=1000)
    assert len(discover(run)) == 10


def test_temporary_names_are_left_out_and_links_to_nothing_are_not_there(run):
    (run / "model_step_1100.pt.tmp").write_text("half")
    (run / "gone.pt").symlink_to("nowhere.pt")
    found = discover(run)
    assert "half-written" in reasons(found)["model_step_1100.pt.tmp"]
    assert len(found) == 10


def test_a_numbered_link_to_nothing_is_left_out_and_said(run):
    (run / "model_step_1100.pt").symlink_to("moved/model_step_1100.pt")
    found = discover(run)
    assert reasons(found)["model_step_1100.pt"] == "a symbolic link that leads nowhere"
    assert len(found) == 10


def test_a_directory_of_broken_links_is_not_called_empty(tmp_path):
    for step in (1, 2):
        (tmp_path / f"model_{step}.pt").symlink_to("nowhere")
    with pytest.raises(NotFoundError, match=r"links that lead nowhere or pipes: model_1\.pt, model_2\.pt"):
        discover(tmp_path)


def test_a_typo_in_a_path_is_answered_with_the_name_that_is_there(run):
    for ask in (discover, lambda path: from_paths([path, run])):
        with pytest.raises(NotFoundError, match="no such file or directory") as caught:
            ask(run / "model_step_10000.pt")
        assert caught.value.hint == f"Did you mean {run / 'model_step_1000.pt'}?"


def test_bounds_that_leave_nothing_say_what_there_is(run):
    """icefall's epochs are ordered by the batch inside, and --from-step 3 --to-step 7 meant epochs."""
    with pytest.raises(NotFoundError, match="no checkpoint from step 3 to step 7") as caught:
        discover(run).between(3, 7)
    assert caught.value.hint == "There are 10 checkpoints, steps 100 to 1000."
    with pytest.raises(NotFoundError, match="no checkpoint from step 5000 on"):
        discover(run).between(from_step=5000)
    with pytest.raises(NotFoundError, match="no checkpoint up to step 7"):
        discover(run).between(to_step=7)


# --- unreadable, equal, nothing --------------------------------------------------------------------------------


def test_an_unreadable_checkpoint_that_would_be_taken_is_an_error_that_says_how_to_go_on(run):
    (run / "model_step_1000.pt").write_text("{")
    found = discover(run)
    with pytest.raises(UnreadableError, match=r"model_step_1000\.pt") as caught:
        found.last(3)
    assert "exclude='model_step_1000.pt'" in caught.value.hint
    assert names(found.exclude("*_1000.pt").last(2)) == ["model_step_800.pt", "model_step_900.pt"]
    assert names(discover(run, exclude=["*_1000.pt"]).last(1)) == ["model_step_900.pt"]


def test_an_unreadable_checkpoint_that_would_not_be_taken_disturbs_nobody(run):
    (run / "model_step_100.pt").write_text("{")
    assert len(discover(run).last(3)) == 3
    assert len(discover(run).between(from_step=500).open()) == 6


def test_two_checkpoints_with_the_same_step_are_a_question(tmp_path):
    save(tmp_path / "epoch=1-step=100.ckpt", step=100)
    save(tmp_path / "epoch=1-step=100-v1.ckpt", step=100)
    save(tmp_path / "epoch=2-step=200.ckpt", step=200)
    with pytest.raises(UsageError, match="same step 100") as caught:
        discover(tmp_path)
    assert len(discover(tmp_path, exclude=["*-v1.ckpt"])) == 2
    # What the hint says must work, for as many as there are.
    save(tmp_path / "epoch=2-step=200-v1.ckpt", step=200)
    glob = re.fullmatch(r"Leave one out: exclude='(.*)'\.", caught.value.hint)[1]
    assert names(discover(tmp_path, exclude=[glob])) == ["epoch=1-step=100.ckpt", "epoch=2-step=200.ckpt"]


def test_two_names_of_one_step_that_look_alike_are_told_apart_by_one_name(tmp_path):
    for name in ("1.pt", "01.pt", "2.pt"):
        save(tmp_path / name)
    with pytest.raises(UsageError, match="same number 1") as caught:
        discover(tmp_path)
    assert caught.value.hint == "Leave one out: exclude='1.pt'."


def test_nothing_there_says_what_was_looked_for_and_what_is_there(tmp_path):
    with pytest.raises(NotFoundError, match="empty"):
        discover(tmp_path)
    (tmp_path / "train.log").write_text("")
    with pytest.raises(NotFoundError, match=r"train\.log") as caught:
        discover(tmp_path)
    assert caught.value.path == tmp_path
    with pytest.raises(NotFoundError, match="no such file or directory") as caught:
        discover(tmp_path / "nowhere")
    assert caught.value.hint is None
    with pytest.raises(UsageError, match="not a model directory"):
        discover(tmp_path / "train.log")


@pytest.mark.parametrize("below", ["", "version_0/checkpoints"])
def test_a_directory_of_model_directories_is_a_question(tmp_path, below):
    for name in ("a", "b"):
        for step in (1, 2):
            save(tmp_path / name / below / f"m_step_{step}.pt", step=step)
    with pytest.raises(UsageError) as caught:
        discover(tmp_path)
    assert "(2 checkpoints)" in str(caught.value)
    assert str(tmp_path / "a") in caught.value.hint


def test_a_directory_that_is_one_checkpoint_is_found_as_one(tmp_path):
    by_trainer_state(tmp_path, {500: 0.5, 600: 0.25})
    found = discover(tmp_path / "checkpoint-500")
    assert found.layout == "single"
    assert [entry.checkpoint.path for entry in found.last(1).entries] == [tmp_path / "checkpoint-500"]
    assert len(discover(tmp_path)) == 2


def test_filters_that_leave_nothing_say_so(run):
    with pytest.raises(NotFoundError, match="no checkpoint is left") as caught:
        discover(run).exclude("*").last_default()
    assert "10 exclude='*'" in caught.value.hint


def test_globs_that_match_nothing_are_answered_with_the_names_that_are_there(run):
    with pytest.raises(NotFoundError, match="include left none") as caught:
        discover(run, include=["epoch*"])
    assert "model_step_100.pt, model_step_1000.pt" in caught.value.hint
    (run / "epoch.log").write_text("")
    with pytest.raises(NotFoundError, match=r"there are epoch\.log") as caught:
        discover(run, include=["epoch*"])
    assert "Left out by include: model_step_100.pt" in caught.value.hint


# --- verbs -----------------------------------------------------------------------------------------------------


def test_last_takes_the_newest_and_says_of_the_others_why_not(run):
    found = discover(run).last(3)
    assert names(found) == ["model_step_800.pt", "model_step_900.pt", "model_step_1000.pt"]
    assert reasons(found)["model_step_100.pt"] == "older than the last 3"
    assert len(found.skipped) == 7


def test_more_than_there_are_is_an_error_that_says_what_there_is(run):
    with pytest.raises(
        NotFoundError, match=r"last 20 were asked for.*only 10 checkpoints, steps 100 to 1000"
    ) as caught:
        discover(run).last(20)
    assert "last=10" in caught.value.hint


def test_without_a_number_the_last_eight_are_taken_or_all_there_are(run):
    found = discover(run).last_default()
    assert len(found) == 8
    assert "the last 8 (8 checkpoints, steps 300 to 1000)" in found.notes[-1]
    found = discover(run).between(to_step=300).last_default()
    assert len(found) == 3
    assert "all there are" in found.notes[-1]


def test_every_counts_back_from_the_newest(run):
    assert [entry.step for entry in discover(run).every(3).entries] == [100, 400, 700, 1000]
    assert [entry.step for entry in discover(run).every(4).entries] == [200, 600, 1000]
    assert discover(run).every(1).entries == discover(run).entries


def test_bounds_are_included_and_named_in_the_reasons(run):
    found = discover(run).between(300, 500)
    assert [entry.step for entry in found.entries] == [300, 400, 500]
    assert reasons(found)["model_step_200.pt"] == "before from_step=300"
    assert reasons(found)["model_step_600.pt"] == "after to_step=500"
    with pytest.raises(UsageError):
        discover(run).between(500, 300)


def test_globs_choose_by_name(run):
    assert names(discover(run).include("*_1000.pt", "*_100.pt")) == ["model_step_100.pt", "model_step_1000.pt"]
    assert len(discover(run).exclude("*00.pt").entries) == 0
    assert reasons(discover(run, exclude=["*_900.pt"]))["model_step_900.pt"] == "exclude='*_900.pt'"


def test_verbs_change_nothing_but_what_they_return(run):
    found = discover(run)
    before = (found.entries, found.skipped, found.notes)
    found.last(2), found.every(2), found.between(200), found.include("*"), found.best(1, "loss")
    assert (found.entries, found.skipped, found.notes) == before


@pytest.mark.parametrize("verb", ["last", "every"])
def test_numbers_that_make_no_sense_are_refused(run, verb):
    with pytest.raises(UsageError):
        getattr(discover(run), verb)(0)
    with pytest.raises(UsageError):
        discover(run).best(0, "loss")


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1200))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_checkpoint_is_either_taken_or_has_a_reason(run, n, k, start):
    everything = {path.name for path in run.iterdir()}
    try:
        found = discover(run).between(from_step=start).every(k).last(n)
    except NotFoundError:
        return
    assert len(found) == n
    assert sorted([*names(found), *reasons(found)]) == sorted(everything)
    steps = [entry.step for entry in found.entries]
    assert steps == sorted(steps)


# --- metrics ---------------------------------------------------------------------------------------------------


def test_best_reads_the_checkpoint_itself_and_keeps_the_order_of_steps(tmp_path):
    for step, loss in [(1, 0.5), (2, 0.1), (3, 0.4), (4, 0.2)]:
        save(tmp_path / f"m_step_{step}.pt", step=step, **{"metrics.val.loss": loss})
    found = discover(tmp_path).best(2, "loss")
    assert [entry.step for entry in found.entries] == [2, 4]
    assert "lower" in " ".join(found.notes)
    assert reasons(found)["m_step_1.pt"] == "not among the best 2: loss 0.5"
    assert [entry.step for entry in discover(tmp_path).best(2, "metrics.val.loss", "max").entries] == [1, 3]


def test_equal_values_go_to_the_newer_and_nan_never_wins(tmp_path):
    for step, value in [(1, 0.5), (2, 0.5), (3, float("nan")), (4, 0.5)]:
        save(tmp_path / f"m_step_{step}.pt", step=step, acc=value)
    found = discover(tmp_path).best(2, "acc")
    assert [entry.step for entry in found.entries] == [2, 4]
    assert reasons(found)["m_step_3.pt"] == "acc is NaN"
    assert [entry.step for entry in discover(tmp_path).best(2, "acc", "min").entries] == [2, 4]
    with pytest.raises(NotFoundError, match="only 3"):
        discover(tmp_path).best(4, "acc")


def test_an_unknown_direction_is_a_question():
    assert (mode_of("eval_loss"), mode_of("dev/WER"), mode_of("valid.acc"), mode_of("chrf")) == (
        "min",
        "min",
        "max",
        "max",
    )
    for metric in ("reward", "loss_or_acc", "score"):
        with pytest.raises(UsageError) as caught:
            mode_of(metric)
        assert "mode='max'" in caught.value.hint


def test_a_metric_that_some_lack_lists_them_and_what_there_is(run):
    save(run / "model_step_500.pt", step=500, bleu=3)
    with pytest.raises(NotFoundError, match=r"model_step_500\.pt") as caught:
        discover(run).best(2, "loss")
    assert "bleu" in caught.value.hint
    # A typo is a typo, whatever its direction would be.
    with pytest.raises(NotFoundError, match="no metric 'los'"):
        discover(run).best(2, "los")


def test_an_ambiguous_metric_is_a_question(tmp_path):
    save(tmp_path / "m_step_1.pt", **{"train.loss": 1.0, "val.loss": 2.0})
    with pytest.raises(UsageError, match=r"train\.loss, val\.loss"):
        discover(tmp_path).best(1, "loss")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("epoch=3-val_loss=0.123-step=5.ckpt", {"val_loss": 0.123}),
        ("w-step100-loss0.31.pt", {"loss": 0.31}),
        ("checkpoint.best_bleu_28.3512.pt", {"bleu": 28.3512}),
        ("asr--val_wer=0.1234-epoch=9.ckpt", {"val_wer": 0.1234}),
        ("m_loss=-1.5e-3.pt", {"m_loss": -0.0015}),
        ("checkpoint_3_2500.pt", {}),
        ("model_step_1000.pt", {}),
    ],
)
def test_metrics_in_file_names(name, found):
    assert name_metrics(name) == found


def by_yaml(directory, table):
    for epoch, loss in table.items():
        save(directory / f"epoch_{epoch}.pt")
        (directory / f"epoch_{epoch}.yaml").write_text(f"epoch: {epoch}\nloss_dict:\n  loss: {loss}\n  acc: 0.5\n")


def by_json(directory, table):
    for epoch, loss in table.items():
        save(directory / f"{epoch}.pdparams")
        save(directory / f"{epoch}.json", epoch=epoch, loss=loss)


def by_trainer_state(directory, table):
    for step in table:
        save(directory / f"checkpoint-{step}" / "model.safetensors")
        (directory / f"checkpoint-{step}" / "config.json").write_text("{}")
    history = [{"step": step, "loss": loss} for step, loss in table.items()]
    save(directory / f"checkpoint-{max(table)}" / "trainer_state.json", log_history=history)
    save(directory / "trainer_state.json", log_history=history)


def by_sockeye(directory, table):
    for number in table:
        save(directory / f"params.{number:05d}")
    lines = [f"{number}\tbleu-val=0.1\tloss={loss}\tused-gpu-memory=0" for number, loss in table.items()]
    (directory / "metrics").write_text("\n".join(lines))


def by_joeynmt(directory, table):
    for step in table:
        save(directory / f"{step}.ckpt", step=step)
    lines = [f"Steps: {step}\tloss: {loss}\tPPL: 9.50000\tbleu: 20.1\tLR: 0.0003\t*" for step, loss in table.items()]
    (directory / "validations.txt").write_text("\n".join(lines))


def by_timm(directory, table):
    for epoch in table:
        save(directory / f"checkpoint-{epoch}.pth.tar", epoch=epoch)
    lines = ["epoch,loss,eval_top1", *(f"{epoch},{loss},70" for epoch, loss in table.items())]
    (directory / "summary.csv").write_text("\n".join(lines))


def by_speechbrain(directory, table):
    for number, loss in table.items():
        save(directory / f"CKPT+2024-01-{number:02d}+00-00-00+00" / "model.ckpt")
        (directory / f"CKPT+2024-01-{number:02d}+00-00-00+00" / "CKPT.yaml").write_text(f"unixtime: 5\nloss: {loss}\n")


def by_fairseq2(directory, table):
    for step, loss in table.items():
        save(directory / f"step_{step}" / "model" / "pp_00")
        save(directory / f"step_{step}" / "model.pt")
        (directory / "scores").mkdir(exist_ok=True)
        (directory / "scores" / f"step_{step}.txt").write_text(f"loss: {loss}\n")


def by_nanochat(directory, table):
    for step, loss in table.items():
        save(directory / f"model_{step:06d}.pt")
        save(directory / f"meta_{step:06d}.json", step=step, loss=loss)


@pytest.mark.parametrize(
    "write",
    [by_yaml, by_json, by_trainer_state, by_sockeye, by_joeynmt, by_timm, by_speechbrain, by_fairseq2, by_nanochat],
)
def test_metrics_are_read_from_where_the_run_keeps_them(tmp_path, write):
    write(tmp_path, {7: 0.9, 8: 0.25, 9: 0.5, 10: 0.75})
    everything = names(discover(tmp_path))
    assert len(everything) == 4
    assert names(discover(tmp_path).best(2, "loss")) == everything[1:3]


def test_of_sources_that_disagree_the_most_specific_counts_and_it_is_said(tmp_path):
    save(tmp_path / "w-step1-loss0.90.pt", step=1, loss=0.1)
    save(tmp_path / "w-step2-loss0.50.pt", step=2, loss=0.5)
    found = discover(tmp_path).best(1, "loss")
    assert names(found) == ["w-step1-loss0.90.pt"]
    assert any("the checkpoint itself" in note and "the file name" in note for note in found.notes)


def test_a_score_file_with_a_bare_number_is_called_score(tmp_path):
    by_fairseq2(tmp_path, {1: 0.5, 2: 0.25})
    for step in (1, 2):
        (tmp_path / "scores" / f"step_{step}.txt").write_text(f"{step / 4}\n")
    assert names(discover(tmp_path).best(1, "score", "max")) == ["step_2"]


@pytest.mark.parametrize(
    ("text", "place"), [("loss: [1,", "line 1"), ("a: 1\nb: !!python/object/apply:os.system ['echo']\n", "line 2")]
)
def test_a_bad_sidecar_is_an_error_with_its_line_and_runs_nothing(tmp_path, text, place):
    save(tmp_path / "epoch_1.pt")
    (tmp_path / "epoch_1.yaml").write_text(text)
    with pytest.raises(UnreadableError, match=r"epoch_1\.yaml.*" + place):
        discover(tmp_path).best(1, "loss")


def test_a_bad_trainer_state_is_an_error(tmp_path):
    by_trainer_state(tmp_path, {1: 0.5, 2: 0.25})
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(UnreadableError, match="trainer_state"):
        discover(tmp_path).best(1, "loss")


# --- lists -----------------------------------------------------------------------------------------------------


def test_a_list_keeps_its_order_and_reads_steps(run):
    paths = [run / "model_step_900.pt", run / "model_step_100.pt"]
    found = from_paths(paths)
    assert [(entry.path, entry.step, entry.where_step) for entry in found.entries] == [
        (paths[0], 900, "name"),
        (paths[1], 100, "name"),
    ]
    assert found.layout == "list"


def test_in_a_list_steps_are_known_for_all_or_for_none(tmp_path):
    a, b = save(tmp_path / "model_step_9.pt"), save(tmp_path / "model_step_10.pt", step=10, pad=1)
    assert [entry.step for entry in from_paths([a, b]).entries] == [9, 10]
    c = save(tmp_path / "other.pt")
    assert [entry.step for entry in from_paths([b, c]).entries] == [None, None]


@pytest.mark.parametrize("make", [None, link_symbolic, os.link])
def test_the_same_checkpoint_twice_is_an_error_naming_both(run, make):
    first, second = run / "model_step_100.pt", run / "model_step_100.pt"
    if make is not None:
        second = run / "again.pt"
        make(first, second)
    with pytest.raises(UsageError, match="given twice") as caught:
        from_paths([first, run / "model_step_200.pt", second])
    assert second.name in str(caught.value)


def test_equal_bytes_in_a_list_are_warned_about(run):
    copy(run / "model_step_100.pt", run / "b.pt")
    assert "same bytes" in from_paths([run / "model_step_100.pt", run / "b.pt"]).warnings[0]
    assert from_paths([run / "model_step_100.pt", run / "model_step_200.pt"]).warnings == ()


def test_checkpoint_directories_in_a_list_are_checkpoints(tmp_path):
    by_trainer_state(tmp_path, {500: 0.5, 600: 0.25})
    found = from_paths([tmp_path / "checkpoint-600", tmp_path / "checkpoint-500"])
    assert [entry.checkpoint.path.name for entry in found.entries] == ["checkpoint-600", "checkpoint-500"]
    assert [entry.step for entry in found.entries] == [600, 500]


def test_a_model_directory_in_a_list_is_a_question(run, tmp_path):
    with pytest.raises(UsageError, match="model directory with 10 checkpoints"):
        from_paths([run, run / "model_step_100.pt"])
    with pytest.raises(NotFoundError):
        from_paths([run / "nowhere.pt"])


def test_an_unreadable_member_of_a_list_is_an_error_without_talk_of_exclusion(run):
    (run / "model_step_100.pt").write_text("{")
    with pytest.raises(UnreadableError) as caught:
        from_paths([run / "model_step_100.pt", run / "model_step_200.pt"])
    assert caught.value.hint is None


def test_shuffled_creation_gives_one_discovery(tmp_path):
    results = []
    for seed in range(3):
        directory = tmp_path / str(seed)
        files = [f"checkpoint{epoch}.pt" for epoch in range(12)] + ["checkpoint_best.pt", "checkpoint_last.pt"]
        random.Random(seed).shuffle(files)
        for name in files:
            save(directory / name, name=name)
        found = discover(directory)
        results.append((names(found), reasons(found), found.why))
    assert results[0] == results[1] == results[2]
