"""One training step of DG-Net: the order in which the passes and parts of `dgnet_fast.training.parts` and the
optimisers come. `dgnet_fast.training.runner` runs them.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from dgnet_fast.data import Batch
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.layers import idle_biases
from dgnet_fast.training.graphs import CudaRecorder, Recorder, graphs_wanted
from dgnet_fast.training.lanes import Lanes
from dgnet_fast.training.optim import SENT, Optimisers, Precision
from dgnet_fast.training.parts import (
    GENERATOR_PARTS,
    STREAMS,
    Settings,
    adversarial_part,
    discriminator_parts,
    encode_appearance,
    forward_pass,
    identity_part,
    more_apart,
    more_real_part,
    reconstruction_part,
    swapped_only,
    teacher_part,
    trains_on_generated,
)
from dgnet_fast.training.runner import Phase, Runner, Step
from dgnet_fast.training.schedule import WeightTensors, is_present, weights_at


class TrainingStep(Runner):
    """Runs DG-Net's steps.

    ``dropout`` False switches E_a's dropout off (parity with recorded numbers). ``deferred`` and ``recorder`` as in
    `Runner`; without a recorder it is the device's own, where ``cuda_graphs`` asks for one.
    """

    PHASES = {
        "dis": Phase(("dis",), "dis_total", "discriminator"),
        "gen": Phase(("gen", "id"), "total"),
    }
    TERMS = (
        "dis", "dis_penalty", "dis_total",
        "recon_x", "recon_xp", "id", "pid", "id_more", "recon_id", "recon_s", "recon_f", "code", "recon_x_cyc", "adv",
        "teacher", "teacher_kl", "teacher_fine", "total",
    )  # fmt: skip
    STREAMS = STREAMS
    COMPILED_ON_CPU = (forward_pass, swapped_only, reconstruction_part)
    """What decodes pictures. D, and E_a on real pictures, take longer compiled, since our operators have ways that
    torch.compile does not read (`python -m benchmarks.step --gains`).
    """

    model: DGNet

    def __init__(
        self,
        model: DGNet,
        optimisers: Optimisers,
        precision: Precision,
        *,
        dropout: bool = True,
        deferred: bool | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        first = next(model.parameters())
        if recorder is None and graphs_wanted(model.config, precision):
            recorder = CudaRecorder(first.device, required=model.config.cuda_graphs == "on")
        self.dropout = dropout
        self.weights = WeightTensors(first.device, first.dtype)
        super().__init__(
            model,
            optimisers,
            precision,
            seed=model.config.seed,
            compile=model.config.compile,
            deferred=deferred,
            recorder=recorder,
            lanes=Lanes(first.device) if model.config.side_by_side and first.device.type == "cuda" else None,
            whole=model.decoder.upsample,
            idle=idle_biases(model),
            sent=SENT[model.config.send_gradients],
        )

    def plan(self, step: int) -> Settings:
        """The loss weights of the step, and the random choice whether the structure reconstruction trains E_s."""
        config = self.model.config
        drawn = config.use_encoder_again >= torch.rand(()).item()
        weights = self.weights.set(weights_at(config, step))
        # without a structure term the two branches are one
        train_encoder = drawn and (is_present(weights.recon_s_w) or is_present(weights.recon_x_cyc_w))
        return Settings(weights, train_encoder, self.dropout)

    def variant(self, plan: Settings) -> Hashable:
        """Whether the structure reconstruction trains E_s, and which ramped terms are present."""
        return plan.train_encoder, *map(is_present, plan.weights)

    def one_batch(self, step: Step, batch: Batch, plan: Settings) -> None:
        """D learns from the pictures that the generator phase then goes on with. E_a learns from real pictures between
        the two passes, when nothing else is kept.

        Three things may run side by side: D's update and what it then makes of the swaps; what teaches E_a; the passes and
        reconstructions of E_s and G. Not E_a where its gradients come through the shared pass, or where the
        reconstructions read the running statistics that it moves.
        """
        encoded = step.shared(encode_appearance, batch, dropout=plan.dropout)
        apart = not encoded.leaves.code.requires_grad  # E_a is done when its own parts are
        lane = "encoder" if apart and self.model.config.train_bn else ""
        with step.lane(lane if batch.erasing_boxes is not None else ""):
            step.learn("gen", identity_part, encoded.leaves, batch, plan)
        if apart:
            encoded.backward()
        if more_apart(self.model, batch):
            with step.lane(lane):
                step.learn("gen", more_real_part, batch, plan)
        if apart and not trains_on_generated(self.model, plan):
            step.whole("id")
        forward = step.shared(forward_pass, batch, encoded.leaves.code)

        with step.lane("discriminator"):
            own = forward.more_leaves()
            for part in discriminator_parts(self.model.discriminator):
                step.learn("dis", part, own.swapped, batch.x)
            if not step.apply("dis"):
                return
            step.learn("gen", adversarial_part, own, batch, plan)
        if lane:  # its queue is filled first: the current stream, which a lane waits for, goes on with the reconstructions
            with step.lane(lane):
                step.learn("gen", teacher_part, forward.leaves, batch, plan)
        step.learn("gen", reconstruction_part, forward.leaves, batch, plan)
        if not lane:
            step.learn("gen", teacher_part, forward.leaves, batch, plan)
        if apart:
            step.whole("id")
        step.join()
        forward.backward()
        step.whole("gen")
        encoded.backward()
        step.apply("gen")

    def several_batches(self, step: Step, batches: list[Batch], plan: Settings) -> None:
        """D learns from all batches before E_s, G and E_a learn from any, so the passes are made twice."""
        for batch in batches:
            swapped = step.run(swapped_only, batch)
            for part in discriminator_parts(self.model.discriminator):
                step.learn("dis", part, swapped, batch.x)
        if not step.apply("dis"):
            return

        for batch in batches:
            encoded = step.shared(encode_appearance, batch, dropout=plan.dropout)
            step.learn("gen", identity_part, encoded.leaves, batch, plan)
            if more_apart(self.model, batch):
                step.learn("gen", more_real_part, batch, plan)
            if not encoded.leaves.code.requires_grad:
                encoded.backward()
            forward = step.shared(forward_pass, batch, encoded.leaves.code)
            for part in GENERATOR_PARTS:
                step.learn("gen", part, forward.leaves, batch, plan)
            forward.backward()
            encoded.backward()
        step.apply("gen")
