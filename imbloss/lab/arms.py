"""What the loss test compares: a loss, with a sampling and an augmentation if wanted, by a name like focal+balanced."""

from dataclasses import dataclass

from imbloss.lab.augmentations import AUGMENTATIONS, Augmentation
from imbloss.lab.methods import METHODS, Method
from imbloss.lab.samplings import SAMPLINGS, Sampling


@dataclass(frozen=True)
class Arm:
    """One of the methods that are compared."""

    loss: str  # in METHODS
    sampling: str = "none"  # in SAMPLINGS
    augmentation: str = "none"  # in AUGMENTATIONS

    @classmethod
    def of(cls, name: str) -> "Arm":
        """From its name.

        Raises:
            ValueError: a part of the name is unknown, or there twice.

        >>> Arm.of("focal+smote+remix")
        Arm(loss='focal', sampling='smote', augmentation='remix')
        """
        loss, *others = name.split("+")
        if loss not in METHODS:
            raise ValueError(f"expected methods among {', '.join(METHODS)}, but got {loss!r}")
        arm = cls(loss)
        for part in others:
            if part in SAMPLINGS and arm.sampling == "none" and part != "none":
                arm = cls(loss, part, arm.augmentation)
            elif part in AUGMENTATIONS and arm.augmentation == "none" and part != "none":
                arm = cls(loss, arm.sampling, part)
            else:
                known = ", ".join([*list(SAMPLINGS)[1:], *list(AUGMENTATIONS)[1:]])
                raise ValueError(f"expected at most one sampling and one augmentation ({known}), but got {name!r}")
        return arm

    @property
    def name(self) -> str:
        return "+".join([self.loss, *(part for part in (self.sampling, self.augmentation) if part != "none")])

    @property
    def title(self) -> str:
        parts = METHODS[self.loss].title, SAMPLINGS[self.sampling].title, AUGMENTATIONS[self.augmentation].title
        return " + ".join(part for part in parts if part)

    @property
    def method(self) -> Method:
        return METHODS[self.loss]

    @property
    def of_samples(self) -> Sampling:
        return SAMPLINGS[self.sampling]

    @property
    def of_batches(self) -> Augmentation:
        return AUGMENTATIONS[self.augmentation]

    @property
    def trained_as(self) -> "Arm":
        """The arm whose model this one reads; mostly itself."""
        return Arm(self.method.trained_as or self.loss, self.sampling, self.augmentation)

    def check(self, kind: str) -> None:
        """Whether it can be trained on data of a kind.

        Raises:
            ValueError: it cannot.
        """
        for name, part in ((self.sampling, self.of_samples), (self.augmentation, self.of_batches)):
            if kind not in part.kinds:
                raise ValueError(f"expected {name} with {' or '.join(part.kinds)} data, but got {kind} data")
        if self.of_batches.soft and not self.method.soft:
            raise ValueError(f"expected a loss of target probabilities with {self.augmentation}, but got {self.loss}")


def title_of(name: str) -> str:
    return Arm.of(name).title
