"""Small frozen values that travel between phases. They hold models and tensors but never import torch."""

from .data import ROLES, BadRow, Example, Examples, Message, Role, Row, Rows, Source
from .inference import Answer, Backend, GenerationSettings, Prompt, TextScore
from .machine import BYTES, Accelerator, DType, Machine, Precision
from .model import LoadRequest, Merge, ModelBundle, Quantization, Report
from .plan import MEMORY_PARTS, DataEstimate, Estimate, EstimateRequest, Plan, PlannedPlugin, PlanStep, StagePlan
from .training import Artefact, Calls, Context, Event, EventKind, OptimizerSettings, StageContext, StageResult

__all__ = [
    "BYTES",
    "MEMORY_PARTS",
    "ROLES",
    "Accelerator",
    "Answer",
    "Artefact",
    "Backend",
    "BadRow",
    "Calls",
    "Context",
    "DType",
    "DataEstimate",
    "Estimate",
    "EstimateRequest",
    "Event",
    "EventKind",
    "Example",
    "Examples",
    "GenerationSettings",
    "LoadRequest",
    "Machine",
    "Merge",
    "Message",
    "ModelBundle",
    "OptimizerSettings",
    "Plan",
    "PlanStep",
    "PlannedPlugin",
    "Precision",
    "Prompt",
    "Quantization",
    "Report",
    "Role",
    "Row",
    "Rows",
    "Source",
    "StageContext",
    "StagePlan",
    "StageResult",
    "TextScore",
]
