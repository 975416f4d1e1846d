"""The backbone: a hierarchical 3D Swin and the convolutional blocks that turn its stages into maps.

The Swin is MONAI's, the blocks are those of Swin UNETR (Hatamizadeh et al., arXiv 2201.01266), put
together as the encoder that public evaluation code (kaiko-eva 0.4.5) loads: module names, keys,
shapes and the six maps are that encoder's, so weights trained here load there strictly.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from monai.networks.blocks import UnetrBasicBlock
from monai.networks.nets.swin_unetr import PatchMerging, SwinTransformer
from torch import Tensor, nn

from coralbay.views import MAX_COLLAPSED_SIDE

PATCH_MERGING = "monai>=1.5"
"""Which meaning of patch merging the weights were trained with. MONAI 1.5.0 changed which corner of
a 2³ neighbourhood goes where (Project-MONAI #8285) without changing keys or shapes, so weights of
one kind load into the other and give wrong maps; a checkpoint records this."""


class SwinEncoder(nn.Module):
    """Six feature maps of a CT, from the full resolution down to 1/32.

    Args:
        feature_size: F, channels of the two shallowest maps; divisible by every head count in use.
        depths: blocks a stage.
        num_heads: attention heads a stage.
        window: side of an attention window, tokens.
        use_v2: a residual convolution before each stage.
        drop_path_rate: stochastic depth of the last block; earlier ones have less, linearly.
    """

    def __init__(
        self,
        feature_size: int,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        use_v2: bool = True,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.swinViT = SwinTransformer(  # the name is part of the state dict's keys
            in_chans=1,
            embed_dim=feature_size,
            window_size=(window,) * 3,
            patch_size=(2, 2, 2),
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            mlp_ratio=4.0,
            qkv_bias=True,
            drop_path_rate=drop_path_rate,
            downsample=PatchMerging,
            use_v2=use_v2,
        )
        self.encoder1 = _conv_block(1, feature_size)
        self.encoder2 = _conv_block(feature_size, feature_size)
        self.encoder3 = _conv_block(2 * feature_size, 2 * feature_size)
        self.encoder4 = _conv_block(4 * feature_size, 4 * feature_size)
        self.encoder10 = _conv_block(16 * feature_size, 16 * feature_size)

    def forward(self, x: Float[Tensor, "b 1 d h w"]) -> list[Tensor]:
        """Return ``[enc0, enc1, enc2, enc3, hid3, dec4]``.

        Channels are F · (1, 1, 2, 4, 8, 16), strides 1, 2, 4, 8, 16, 32.

        Raises:
            ValueError: a side of 32 voxels or fewer.
        """
        hidden = self.hidden_states(x)
        return [
            self.encoder1(x),
            self.encoder2(hidden[0]),
            self.encoder3(hidden[1]),
            self.encoder4(hidden[2]),
            hidden[3],
            self.encoder10(hidden[4]),
        ]

    def hidden_states(self, x: Float[Tensor, "b 1 d h w"]) -> list[Tensor]:
        """Return the Swin's five stages alone, each layer-normed over its channels.

        Channels are F · (1, 2, 4, 8, 16), strides 2, 4, 8, 16, 32.

        Raises:
            ValueError: a side of 32 voxels or fewer.
        """
        if min(x.shape[2:]) <= MAX_COLLAPSED_SIDE:
            raise ValueError(
                f"input of sides {tuple(x.shape[2:])}: a side of {MAX_COLLAPSED_SIDE} voxels or "
                f"fewer collapses to one voxel; give {MAX_COLLAPSED_SIDE + 1} or more"
            )
        hidden: list[Tensor] = self.swinViT(x, normalize=True)
        return hidden


def _conv_block(in_channels: int, out_channels: int) -> nn.Module:
    """Residual 3³ convolutions with instance norms that hold no parameters."""
    block: nn.Module = UnetrBasicBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )
    return block
