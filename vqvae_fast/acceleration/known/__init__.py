"""The recipes, by the library whose quantizers they know.

A recipe names a class, so that no library is imported before a model of it exists. Classes that are
copied from repository to repository are recognised by their shape.
"""

from vqvae_fast.acceleration.known import (
    composed_dac,
    descript_audio_codec,
    encodec_in_transformers,
    encodec_package,
    image_tokenizers_in_transformers,
    llamagen_shape,
    mimi_in_transformers,
    moshi_package,
    vector_quantize_pytorch,
    vq_model_in_diffusers,
    vq_vae_2_shape,
    vqgan_shapes,
)
from vqvae_fast.acceleration.recipe import Recipe

# They are asked in this order.
KNOWN: list[Recipe] = [
    *mimi_in_transformers.RECIPES,
    *encodec_in_transformers.RECIPES,
    *descript_audio_codec.RECIPES,
    *composed_dac.RECIPES,
    *image_tokenizers_in_transformers.RECIPES,
    *vq_model_in_diffusers.RECIPES,
    *encodec_package.RECIPES,
    *moshi_package.RECIPES,
    *vqgan_shapes.RECIPES,
    *llamagen_shape.RECIPES,
    *vq_vae_2_shape.RECIPES,
    *vector_quantize_pytorch.RECIPES,
]
