"""Fields that other servers and services take beside a picture's prompt, by who has them: each is
dropped at the values that ask for what is done anyway, and refused at any other.

Names of one of our own fields are in `images_body.OTHER_NAMES`.
"""

from __future__ import annotations

from predictors.protocol.openai.check_fields import CHECK_FIELDS
from predictors.protocol.openai.clients import ROUTER_FIELDS, Tables
from predictors.protocol.openai.fields import dropped, only_values

_EDITS = "a picture to edit is `image` of POST /v1/images/edits"
_SIDES = "width and height say it"
_TIER = "`tier` sets exactness"
_AS_WRITTEN = "prompts are read as they are written"
_SCHEDULE = "the checkpoint's own scheduler is used"
_LORAS = "adapters are named in `loras`"
_OTHER_MODELS = "no model here reads it"
_DECODING = "the server's engine decodes pictures in one way"
_NO_MARK = "nothing is drawn over a picture"

IMAGE_CLIENTS: Tables = {
    "LiteLLM": ROUTER_FIELDS,
    "Together, fal, Replicate, SiliconFlow, Black Forest Labs": {
        "aspect_ratio": only_values(why=_SIDES),
        "megapixels": only_values(why=_SIDES),
        "resolution": only_values(why=_SIDES),
        "image_url": only_values(why=_EDITS),
        "image_prompt": only_values(why=_EDITS),
        "input_image": only_values(why=_EDITS),
        "reference_images": only_values([], why=_EDITS),
        "control_image": only_values(why="control pictures are not offered"),
        "image_loras": only_values([], why=_LORAS),
        "lora_weights": only_values(why=_LORAS),
        "lora_scale": only_values(1, why=_LORAS),
        **CHECK_FIELDS,
        "sync_mode": dropped(bool, why="an answer has its pictures"),
        "acceleration": dropped(str, why=_TIER),
        "go_fast": dropped(bool, why=_TIER),
        "output_quality": only_values("default", why="use output_compression"),
        "prompt_upsampling": only_values(False, why=_AS_WRITTEN),
        "prompt_enhancement": only_values(False, why=_AS_WRITTEN),
        "prompt_extend": only_values(False, why=_AS_WRITTEN),
        "enhance_prompt": only_values(False, why=_AS_WRITTEN),
        "raw": only_values(False, why="there is one way to draw"),
        "watermark": only_values(False, why=_NO_MARK),
        "logo_info": only_values({}, why=_NO_MARK),
        "sequential_image_generation": only_values("disabled", why="`n` says how many"),
    },
    "Stable Diffusion web UI, Forge, diffusers": {
        "cfg_scale": only_values(1, why="use guidance_scale, or true_cfg_scale"),
        "sampler_name": only_values("Euler", "euler", why=_SCHEDULE),
        "sampler": only_values("Euler", "euler", why=_SCHEDULE),
        "scheduler": only_values("automatic", "simple", why=_SCHEDULE),
        "clip_skip": only_values(0, 1, why="the encoder's last layer is read"),
        "prompt_2": only_values(why="both text encoders read `prompt`"),
        "negative_prompt_2": only_values(why="both text encoders read `negative_prompt`"),
        "n_iter": only_values(1, why="`n` says how many"),
        "eta": only_values(0, why=_SCHEDULE),
        "sigmas": only_values(why=_SCHEDULE),
    },
    "vLLM-Omni and SGLang": {
        "lora": only_values({}, why=_LORAS),
        "flow_shift": only_values(why=_SCHEDULE),
        "generator_device": dropped(str, why="noise is drawn on the CPU, by the seed"),
        "vae_use_slicing": dropped(bool, why=_DECODING),
        "vae_use_tiling": dropped(bool, why=_DECODING),
        "enable_teacache": only_values(False, why="the tier `turbo` computes fewer steps"),
        "rollout": only_values(False, why=_OTHER_MODELS),
        "rollout_sde_type": dropped(str, why="it only matters with rollout"),
        "diffusers_kwargs": only_values({}, why="its fields belong into the body itself"),
        "extra_params": only_values({}, why="its fields belong into the body itself"),
        "layers": only_values(why=_OTHER_MODELS),
        "bot_task": only_values(why=_OTHER_MODELS),
        "system_prompt": only_values(why=_OTHER_MODELS),
        "use_system_prompt": only_values(why=_OTHER_MODELS),
        "infer_align_image_size": dropped(bool, why=_OTHER_MODELS),
    },
}
"""Fields of `POST /v1/images/generations` that other clients send."""
EDIT_CLIENTS: Tables = IMAGE_CLIENTS
"""Fields of `POST /v1/images/edits` that other clients send."""
