"""diffusers reads a pipeline to the device that it finds itself, or to the CPU; here to this one by name."""

from types import ModuleType

from genie.integrations._asked import NAME


def add_device_map(pipeline_utils: ModuleType) -> None:
    """`DiffusionPipeline.from_pretrained(..., device_map="remote_accelerator")`."""
    if NAME not in pipeline_utils.SUPPORTED_DEVICE_MAP:
        pipeline_utils.SUPPORTED_DEVICE_MAP.append(NAME)
