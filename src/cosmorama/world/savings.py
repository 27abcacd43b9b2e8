"""What is computed once instead of again and again. Every saving leaves the numbers as they were, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Savings:
    """Work left out of a Cosmos model's sampling, compared with diffusers' pipelines.

    All but the last are on unless switched off.

    Attributes:
        adaln_per_frame: Modulate once per latent frame, not once per token: it depends on the timestep alone.
        fold_text_rows: Let one key with the bias log(n) stand for the n equal rows that fill a T5 prompt up to 512, and
            run the encoder on the prompt's own tokens only.
        cache_positions: Compute the position embeddings once per request, not once per evaluation.
        cache_cross_attention: Project a prompt to every block's keys and values once per request.
        encode_only_given_frames: Leave the frames that pad a clip out of the (causal) video encoder.
        text_stream_once: Run a prompt through Cosmos3's understanding half once, not at every evaluation.
        skip_idle_step: Leave out the last step of a schedule that ends with the same level twice.
        lean_convolutions: Run the Wan tokenizers' convolutions on a CPU without padding, unfolding and rearranging
            their input, and not at all on the zeros before a clip; see `causal_conv`.
        onednn_products: Multiply float32 matrices on a CPU by oneDNN, which is faster at it than torch's choice; see
            `cpu_linear`.
        release_text_half: Drop the weights of Cosmos3 that only text runs through (about half of them) once a prompt is
            read, and read them from the checkpoint again for the next one: memory for time.
    """

    adaln_per_frame: bool = True
    fold_text_rows: bool = True
    cache_positions: bool = True
    cache_cross_attention: bool = True
    encode_only_given_frames: bool = True
    skip_idle_step: bool = True
    text_stream_once: bool = True
    lean_convolutions: bool = True
    onednn_products: bool = True
    release_text_half: bool = False


ALL_SAVINGS = Savings()
