"""The programs in examples/ run, and what they say of trainers holds. Each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDS = {
    "ddp": [],
    "lightning_trainer": ["pytorch_lightning"],
    "hugging_face_trainer": ["transformers", "accelerate", "datasets"],
}


def run(*command):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def require(example):
    for name in NEEDS[example]:
        pytest.importorskip(name, reason="needs the extra recipes")


def test_every_example_is_run():
    assert set(NEEDS) == {path.stem for path in (ROOT / "examples").glob("*.py")}


def test_two_processes_train_as_one():
    out = run(str(ROOT / "examples" / "ddp.py"))
    apart, steps = re.search(r"differ by (\S+) after (\d+) steps", out).groups()
    assert float(apart) < 1e-12 and int(steps) == 8


@pytest.mark.parametrize("example", ["lightning_trainer", "hugging_face_trainer"])
def test_recipes_learn_the_rare_classes(example):
    """Cross entropy without a sampler recalls about half of them."""
    require(example)
    rare = re.search(r"of the five rarest classes (\S+)", run(str(ROOT / "examples" / f"{example}.py")))[1]
    assert float(rare) > 0.7


LIGHTNING = """
from pathlib import Path

from lightning_trainer import *

class Spy(Classifier):
    def training_step(self, batch, number):
        self.seen = [*getattr(self, "seen", []), *batch[0].tolist()]
        return self.model(batch[0].float().unsqueeze(1)).mean()

    def on_train_epoch_end(self):
        # two processes' lines of output can run into each other
        Path(__file__).with_name(f"seen_{self.current_epoch}_{self.global_rank}").write_text(str(self.seen))
        self.seen = []

if __name__ == "__main__":
    spy = Spy(TensorDataset(torch.arange(40), torch.arange(40) // 36))
    spy.model = nn.Linear(1, 1)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    lightning.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_spawn", **quiet).fit(spy)
    sampler = imbloss.ImbalancedDatasetSampler(spy.dataset, strategy="sqrt")
    for epoch in range(2):
        print("one", list(sampler))
"""


def test_lightning_shares_one_stream_between_its_processes(tmp_path):
    require("lightning_trainer")
    script = tmp_path / "two_devices.py"
    script.write_text(LIGHTNING)
    out = run(str(script))
    epochs = re.findall(r"one (\[.*\])", out)
    assert len(epochs) == 2
    for epoch, values in enumerate(epochs):
        seen = [json.loads((tmp_path / f"seen_{epoch}_{rank}").read_text()) for rank in (0, 1)]
        assert seen == [json.loads(values)[rank::2] for rank in (0, 1)]


HUGGING_FACE = """
from hugging_face_trainer import *

def arguments(folder, **keywords):
    return TrainingArguments(
        folder, num_train_epochs=3, per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, logging_strategy="no", **keywords,
    )

def fresh():
    torch.manual_seed(0)
    return Classifier()

whole, resumed = fresh(), fresh()
x = torch.randn(80, 64)
y = torch.arange(80) % 13 % 10
table = datasets.Dataset.from_dict({"x": x.numpy(), "labels": y.numpy()}).with_format("torch")
with tempfile.TemporaryDirectory() as folder:
    once = arguments(folder, save_strategy="steps", save_steps=14)  # of ten steps an epoch
    BalancedTrainer(whole, once, train_dataset=table).train()
    again = arguments(folder, save_strategy="no")
    BalancedTrainer(resumed, again, train_dataset=table).train(resume_from_checkpoint=folder + "/checkpoint-14")
print("same", all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters())))
"""


def test_hugging_face_resumes_with_the_same_draws(tmp_path):
    require("hugging_face_trainer")
    script = tmp_path / "resume.py"
    script.write_text(HUGGING_FACE)
    assert "same True" in run(str(script))
