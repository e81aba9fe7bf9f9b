"""Architectures of transformers, small, from configurations."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from zoo_inputs import declare_torchvision, images

__all__ = ["TRANSFORMERS"]


# transformers: configuration, model, options, example.
def _transformers(
    config: str, model: str, options: dict[str, Any], example: Callable[[], Any]
) -> tuple[nn.Module, Any]:
    declare_torchvision()  # it imports torchvision where there is one
    transformers = importlib.import_module("transformers")
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    if hasattr(made, "freeze_feature_encoder"):
        made.freeze_feature_encoder()  # else it sets `requires_grad` of its input
    return made, example()


def _pixels(size: int, **others: Any) -> Callable[[], Any]:
    return lambda: {"pixel_values": images(size), **others}


_DETECTION: dict[str, Any] = {
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_queries": 10,
    "num_denoising": 0,
}
_SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
_RESNET = {"model_type": "resnet", **_SMALL, "out_features": ["stage2", "stage3", "stage4"]}
_WAVE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embedding_groups": 2,
    "num_conv_pos_embeddings": 8,
    "vocab_size": 8,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}
_SERIES = {"prediction_length": 4, "context_length": 16, "num_input_channels": 3}


def _wave() -> Any:
    return {"input_values": torch.randn(4, 800)}


def _past() -> Any:
    return {"past_values": torch.randn(4, 16, 3)}


TRANSFORMERS = {
    "ResNet": partial(
        _transformers, "ResNetConfig", "ResNetForImageClassification", _SMALL, _pixels(64)
    ),
    "RegNet": partial(
        _transformers,
        "RegNetConfig",
        "RegNetForImageClassification",
        {**_SMALL, "groups_width": 8},
        _pixels(64),
    ),
    "MobileNetV1": partial(
        _transformers,
        "MobileNetV1Config",
        "MobileNetV1ForImageClassification",
        {"depth_multiplier": 0.25},
        _pixels(64),
    ),
    "MobileNetV2": partial(
        _transformers,
        "MobileNetV2Config",
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.35},
        _pixels(64),
    ),
    "MobileNetV2 DeepLabV3+": partial(
        _transformers,
        "MobileNetV2Config",
        "MobileNetV2ForSemanticSegmentation",
        {"depth_multiplier": 0.35},
        _pixels(64),
    ),
    "EfficientNet": partial(
        _transformers,
        "EfficientNetConfig",
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        _pixels(64),
    ),
    "LeViT": partial(
        _transformers,
        "LevitConfig",
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [1, 2, 3],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        _pixels(64),
    ),
    "MobileViT": partial(
        _transformers,
        "MobileViTConfig",
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 24, 32, 48, 64],
        },
        _pixels(64),
    ),
    "MobileViTV2": partial(
        _transformers,
        "MobileViTV2Config",
        "MobileViTV2ForImageClassification",
        {"image_size": 64, "width_multiplier": 0.5},
        _pixels(64),
    ),
    "SwiftFormer": partial(
        _transformers,
        "SwiftFormerConfig",
        "SwiftFormerForImageClassification",
        {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]},
        _pixels(64),
    ),
    "CvT": partial(
        _transformers,
        "CvtConfig",
        "CvtForImageClassification",
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
        _pixels(64),
    ),
    "HGNetV2": partial(
        _transformers,
        "HGNetV2Config",
        "HGNetV2ForImageClassification",
        {
            "embedding_size": 8,
            "stem_channels": [3, 8, 8],
            "hidden_sizes": [8, 16, 24, 32],
            "stage_in_channels": [8, 8, 16, 24],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [8, 16, 24, 32],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        _pixels(64),
    ),
    "PP-LCNet": partial(
        _transformers, "PPLCNetConfig", "PPLCNetForImageClassification", {}, _pixels(64)
    ),
    "TextNet": partial(
        _transformers, "TextNetConfig", "TextNetForImageClassification", {}, _pixels(64)
    ),
    "SegFormer": partial(
        _transformers,
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 16,
        },
        _pixels(64),
    ),
    "UperNet": partial(
        _transformers,
        "UperNetConfig",
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {
                **_RESNET,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 16,
            "auxiliary_in_channels": 24,
            "auxiliary_channels": 16,
            "num_labels": 5,
        },
        _pixels(64),
    ),
    "DPT": partial(
        _transformers,
        "DPTConfig",
        "DPTForSemanticSegmentation",
        {
            "image_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 8,
            "use_batch_norm_in_fusion_residual": True,
        },
        _pixels(64),
    ),
    "BEiT": partial(
        _transformers,
        "BeitConfig",
        "BeitForSemanticSegmentation",
        {
            "image_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "out_indices": [1, 2, 3, 4],
        },
        _pixels(64),
    ),
    "RT-DETR": partial(
        _transformers,
        "RTDetrConfig",
        "RTDetrForObjectDetection",
        {
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                **_SMALL,
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_in_channels": [16, 24, 32],
            **_DETECTION,
        },
        _pixels(64),
    ),
    "ViTPose": partial(
        _transformers,
        "VitPoseConfig",
        "VitPoseForPoseEstimation",
        {
            "backbone_config": {
                "model_type": "vitpose_backbone",
                "image_size": [64, 64],
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_experts": 1,
            },
            "use_simple_decoder": False,
        },
        _pixels(64),
    ),
    "PatchTST": partial(
        _transformers,
        "PatchTSTConfig",
        "PatchTSTForPrediction",
        {
            **_SERIES,
            "d_model": 16,
            "num_attention_heads": 2,
            "ffn_dim": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_hidden_layers": 2,
        },
        _past,
    ),
    "PatchTSMixer": partial(
        _transformers,
        "PatchTSMixerConfig",
        "PatchTSMixerForPrediction",
        {**_SERIES, "d_model": 8, "patch_length": 4, "patch_stride": 4, "norm_mlp": "BatchNorm"},
        _past,
    ),
    "Wav2Vec2-Conformer": partial(
        _transformers, "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC", _WAVE, _wave
    ),
    "EfficientLoFTR": partial(
        _transformers,
        "EfficientLoFTRConfig",
        "EfficientLoFTRModel",
        {},
        lambda: {"pixel_values": torch.rand(2, 2, 3, 64, 64)},
    ),
    "D-FINE": partial(
        _transformers,
        "DFineConfig",
        "DFineForObjectDetection",
        {
            **_DETECTION,
        },
        _pixels(64),
    ),
}
