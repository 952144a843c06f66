"""Batches of episodes, in an order in which a stopped run can resume."""

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import DataLoader, DistributedSampler

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError


class EpisodeLoader(DataLoader):
    """A DataLoader that tracks its position, so that a run stopped in the middle of an epoch resumes there."""

    position = 0  # batches yielded
    resume_at = 0  # where the next epoch begins; used once
    episodes_per_item = 1  # more where a batch is drawn as a whole

    def __iter__(self) -> Iterator[Episodes]:  # type: ignore[override]
        self.position, self.resume_at = self.resume_at, 0
        for numbers in islice(iter(self.batch_sampler), self.position, None):  # type: ignore[arg-type]
            self.position += 1
            yield self.collate_fn([self.dataset[number] for number in numbers])

    def share_counted(self, batch: int) -> float:
        """The share of a batch that counts in means: processes take the episodes in turn, and some repeat the first.

        They do so where the processes do not divide the episodes, so that all have equally many batches.

        Args:
            batch: its number, in this process.
        """
        sampler, size = self.sampler, self.batch_size or 1
        if not isinstance(sampler, DistributedSampler):
            return 1.0
        own = len(range(sampler.rank, len(self.dataset), sampler.num_replicas))  # type: ignore[arg-type]
        before = batch * size
        here = min(size, len(sampler) - before)
        return min(max(own - before, 0), here) / here

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: the number of batches yielded by each process; 0 after the end of an epoch."""
        return {"position": self.position % len(self), "processes": self.processes}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resumes after that many batches.

        Raises:
            InvalidInputError: they were drawn by another number of processes.
        """
        position, processes = state_dict["position"], state_dict.get("processes", self.processes)
        if position and processes != self.processes:
            raise InvalidInputError(
                f"trainer.devices gives {self.processes} in all, but the checkpoint was written inside an epoch that "
                f"{processes} shared: give as many."
            )
        self.position = self.resume_at = position

    @property
    def processes(self) -> int:
        """How many processes share the episodes."""
        return self.sampler.num_replicas if isinstance(self.sampler, DistributedSampler) else 1
