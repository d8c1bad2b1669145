"""Learning problems: the contract, ready-made tasks, and how data is shared out among agents."""

from p2pqg.tasks.base import Buffers, Evaluation, LocalGradient, Task, TaskContext
from p2pqg.tasks.files import load_csv, load_npz
from p2pqg.tasks.partition import PARTITIONS, partition
from p2pqg.tasks.registry import TASKS, TaskFactory, load_task_factory
from p2pqg.tasks.supervised import Batch, SupervisedTask, Transform

__all__ = [
    "PARTITIONS",
    "TASKS",
    "Batch",
    "Buffers",
    "Evaluation",
    "LocalGradient",
    "SupervisedTask",
    "Task",
    "TaskContext",
    "TaskFactory",
    "Transform",
    "load_csv",
    "load_npz",
    "load_task_factory",
    "partition",
]
