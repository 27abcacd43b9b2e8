"""The three requests of the Sampling Control page, as they stand there."""

from __future__ import annotations

from typing import Any

_SHARED: dict[str, Any] = {
    "negative_prompt": "blurry, low quality, artifacts, people",
    "seed": 42,
    "guidance_scale": 7.5,
    "steps": 35,
    "video_params": {"height": 704, "width": 1280, "frames_count": 121, "frames_per_sec": 24},
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "text2world": {
        "value": {
            "prompt": (
                "The teal robot is cooking food in a kitchen. Steam rises from a simmering pot as the robot chops "
                "vegetables on a worn wooden cutting board. Copper pans hang from an overhead rack, catching glints "
                "of afternoon light, while a well-loved cast iron skillet sits on the stovetop next to scattered "
                "measuring spoons and a half-empty bottle of olive oil."
            ),
            "prompt_upsampling": True,
            **_SHARED,
        }
    },
    "image2world": {
        "value": {
            "prompt": (
                "The video is a wide shot of a large industrial facility, likely a chemical plant or factory, "
                "situated in a rural or semi-industrial area. The scene is set during a partly cloudy day, with the "
                "sky showing patches of blue and white clouds. The facility is surrounded by a vast expanse of green "
                "fields, indicating its location in a countryside or suburban area. The factory itself is a large, "
                "rectangular building with a flat roof, constructed from concrete and metal. It features several "
                "large cylindrical tanks and pipes, suggesting the processing of chemicals or liquids. The tanks are "
                "arranged in a linear fashion along the side of the building, and there are several smaller "
                "structures and equipment scattered around the premises. The camera remains static throughout the "
                "video, capturing the entire facility from a distance, allowing viewers to observe the layout and "
                "scale of the operations. The lighting is natural, with sunlight casting shadows on the ground, "
                "enhancing the details of the industrial setup. There are no visible human activities or movements, "
                "indicating that the video might be a documentary or an informational piece about industrial "
                "processes."
            ),
            "image": "https://assets.ngc.nvidia.com/products/api-catalog/cosmos/industry_01_prompt.jpg",
            **_SHARED,
        }
    },
    "video2world": {
        "value": {
            "prompt": (
                "A first person view from the perspective from a human sized robot as it works in a chemical plant. "
                "The robot has many boxes and supplies nearby on the industrial shelves. The camera on moving "
                "forward, at a height of 1m above the floor. Photorealistic"
            ),
            "video": "https://assets.ngc.nvidia.com/products/api-catalog/cosmos/ar_result_default_robot.mp4",
            **_SHARED,
        }
    },
}
"""By mode, in the shape of an OpenAPI `examples` object."""
