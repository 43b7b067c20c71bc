"""A sampler and a loss in Lightning: `python examples/lightning_trainer.py`; needs imbloss[recipes].

The sampler counts as a DistributedSampler: on several devices Lightning leaves it alone and calls its set_epoch. A
`batch_sampler` such as ClassBalancedBatchSampler wants Trainer(use_distributed_sampler=False) there.
"""

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import imbloss
from imbloss.lab import load


class Classifier(lightning.LightningModule):
    def __init__(self, dataset: TensorDataset) -> None:
        super().__init__()
        self.dataset = dataset
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.loss = nn.Identity()

    def train_dataloader(self) -> DataLoader:
        # made here, where torch.distributed is initialised, so that it knows its rank
        sampler = imbloss.ImbalancedDatasetSampler(self.dataset, strategy="sqrt")
        self.loss = imbloss.BalancedSoftmaxLoss(counts=sampler.prior())
        return DataLoader(self.dataset, batch_size=32, sampler=sampler)

    def training_step(self, batch, _):
        x, y = batch
        return self.loss(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    data = load("digits", imbalance_ratio=50)
    classifier = Classifier(TensorDataset(data.x_train, data.y_train))
    trainer = lightning.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier)
    correct = classifier.model(data.x_test).argmax(1) == data.y_test
    rare = data.y_test >= 5
    print(f"accuracy {correct.double().mean():.2f}, of the five rarest classes {correct[rare].double().mean():.2f}")


if __name__ == "__main__":
    main()
