"""A sampler and a loss in Hugging Face's Trainer: `python examples/hugging_face_trainer.py`; needs imbloss[recipes].

On several devices accelerate shares out the batches of one sampler that is alike everywhere: so num_replicas is 1 here.
A Trainer that resumes skips the batches of the epoch that it has seen, and goes on with the same draws.
"""

import tempfile

import datasets
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import imbloss
from imbloss.lab import load


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.model(x)}


class BalancedTrainer(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        sampler = imbloss.ImbalancedDatasetSampler(
            self.train_dataset, strategy="sqrt", seed=self.args.seed, num_replicas=1, rank=0
        )
        self.loss = imbloss.BalancedSoftmaxLoss(counts=sampler.prior()).to(self.args.device)
        return sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["x"])
        loss = self.loss(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    data = load("digits", imbalance_ratio=50)
    table = datasets.Dataset.from_dict({"x": data.x_train.flatten(1).numpy(), "labels": data.y_train.numpy()})
    torch.manual_seed(0)
    classifier = Classifier()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=20, per_device_train_batch_size=32, learning_rate=3e-3, save_strategy="no",
            report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
        )  # fmt: skip
        BalancedTrainer(classifier, arguments, train_dataset=table.with_format("torch")).train()
    correct = classifier.model(data.x_test.flatten(1)).argmax(1) == data.y_test
    rare = data.y_test >= 5
    print(f"accuracy {correct.double().mean():.2f}, of the five rarest classes {correct[rare].double().mean():.2f}")


if __name__ == "__main__":
    main()
