"""`current_platform`: what vLLM's model files ask of the machine."""

from __future__ import annotations

from typing import Any

import torch

from bestiary.nn.scope import get_current_vllm_config_or_none


class Platform:
    """A CPU, or a CUDA device, as the engine was told."""

    simple_compile_backend = "eager"
    dispatch_key = "CompositeExplicitAutograd"

    @property
    def device_type(self) -> str:
        config = get_current_vllm_config_or_none()
        if config is not None:
            return str(config.device_config.device)
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def device_name(self) -> str:
        return self.device_type

    def current_device(self) -> torch.device:
        """Where a file makes its own tensors; parameters made there move with the model all the same."""
        return torch.device(self.device_type)

    def is_cpu(self) -> bool:
        return self.device_type == "cpu"

    def is_cuda(self) -> bool:
        return self.device_type == "cuda"

    def is_cuda_alike(self) -> bool:
        return self.is_cuda()

    def is_rocm(self) -> bool:
        return False

    def is_xpu(self) -> bool:
        return False

    def is_tpu(self) -> bool:
        return False

    def is_hpu(self) -> bool:
        return False

    def is_neuron(self) -> bool:
        return False

    def is_out_of_tree(self) -> bool:
        return False

    def is_device_capability(self, capability: Any, device_id: int = 0) -> bool:
        return self.is_cuda() and torch.cuda.get_device_capability(device_id) == _pair(capability)

    def is_device_capability_family(self, capability: int, device_id: int = 0) -> bool:
        return self.is_cuda() and torch.cuda.get_device_capability(device_id)[0] == capability // 10

    def has_device_capability(self, capability: Any, device_id: int = 0) -> bool:
        return self.is_cuda() and torch.cuda.get_device_capability(device_id) >= _pair(capability)

    def get_device_capability(self, device_id: int = 0) -> Any:
        return torch.cuda.get_device_capability(device_id) if self.is_cuda() else None

    def supports_fp8(self) -> bool:
        return self.has_device_capability(89)

    def fp8_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn

    def is_fp8_fnuz(self) -> bool:
        return False

    def is_arch_support_pdl(self) -> bool:
        return False


def _pair(capability: Any) -> tuple[int, int]:
    return divmod(capability, 10) if isinstance(capability, int) else tuple(capability)


current_platform = Platform()
