"""Running out of memory: how to tell it from other errors, and how to get what the broken generation held back."""

import gc
import traceback

import torch

CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch says it in a RuntimeError
LIBRARIES = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a tensor found no room, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and (CPU_ALLOCATOR in words or any(word in words for word in LIBRARIES))


def free_memory(error: BaseException | None) -> None:
    """Let go of the tensors that the frames of an error hold, and give what the allocator keeps back to the device."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
