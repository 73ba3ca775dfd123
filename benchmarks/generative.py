"""What ``benchmarks/speed.py`` times of models that generate: a VAE and a GAN."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.variants import Workload, seed_of_step
from datamodules.batch_loader import derive_seed


class Generative(Workload):
    """An experiment whose step is more than a net and a loss. Its tutorial makes the same steps on a DataLoader."""

    def variants(self) -> dict[str, Callable[[], Any]]:
        variants = super().variants()
        del variants["plain Lightning"]
        return variants

    def parts(self, fused: bool | None) -> tuple[list[torch.nn.Module], Callable[[Tensor], float]]:
        """Return the nets, and a function that makes a training step on normalized images and returns its loss."""
        raise NotImplementedError

    def evaluate(self, nets: list[torch.nn.Module], images: Iterable[Tensor]) -> float:
        """Return the mean loss over images, which ends an epoch."""
        raise NotImplementedError

    def bare(self, memory_format: torch.memory_format = torch.channels_last, fused: bool | None = None) -> list[Tensor]:
        nets, step = self.parts(fused)
        inputs, test_inputs = (part[0].to(self.device) for part in (self.train_set, self.test_set))
        prepare, total = self.datamodule.normalize, 0
        for epoch in range(self.epochs):
            order = torch.arange(len(inputs))
            if self.datamodule.shuffle:
                generator = torch.Generator().manual_seed(derive_seed(self.cfg.seed, epoch))
                order = torch.randperm(len(inputs), generator=generator)
            for index in order.to(self.device).split(self.cfg.data.batch_size):
                torch.default_generator.manual_seed(seed_of_step(self.cfg.seed, total))
                step(prepare(inputs[index]))
                total += 1
            self.evaluate(nets, map(prepare, test_inputs.split(1000)))
        return [tensor.detach() for net in nets for tensor in net.state_dict().values()]

    def tutorial(self, workers: int = 0, until: float | None = None) -> int:
        nets, step = self.parts(fused=None)
        train_loader, test_loader = self.loaders(workers)
        for images, _ in train_loader:
            step(images.to(self.device))
        self.evaluate(nets, (images.to(self.device) for images, _ in test_loader))
        return 1


class VAE(Generative):
    """pytorch/examples, vae."""

    def parts(self, fused: bool | None) -> tuple[list[torch.nn.Module], Callable[[Tensor], float]]:
        torch.manual_seed(self.cfg.seed)
        net = instantiate(self.cfg.model.net, input_shape=self.datamodule.shape).to(self.device)
        optimizer = self.optimizer(net, fused=fused)

        def step(images: Tensor) -> float:
            net.train()
            optimizer.zero_grad()
            loss = self.loss(net, images)
            loss.backward()
            optimizer.step()
            return loss.item()

        return [net], step

    def loss(self, net: Any, images: Tensor) -> Tensor:
        mean, log_variance = net.encoder(images).chunk(2, 1)
        logits = net.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        error = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
        return error + 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(images)

    @torch.no_grad()
    def evaluate(self, nets: list[torch.nn.Module], images: Iterable[Tensor]) -> float:
        return sum(self.loss(nets[0].eval(), batch).item() for batch in images)


class GAN(Generative):
    """Lightning's basic-gan, as a loop."""

    def parts(self, fused: bool | None) -> tuple[list[torch.nn.Module], Callable[[Tensor], float]]:
        torch.manual_seed(self.cfg.seed)
        size, shape = self.cfg.model.latent_dim, self.datamodule.shape
        generator = instantiate(self.cfg.model.generator)(latent_dim=size, output_shape=shape).to(self.device)
        discriminator = instantiate(self.cfg.model.discriminator)(input_shape=shape).to(self.device)
        g_optimizer, d_optimizer = (self.optimizer(net, fused=fused) for net in (generator, discriminator))

        def step(images: Tensor) -> float:
            generator.train()
            fakes = generator(torch.randn(len(images), size, device=self.device))
            discriminator.requires_grad_(False)
            g_optimizer.zero_grad()
            g_loss = self.loss(discriminator, fakes, 1)
            g_loss.backward()
            g_optimizer.step()
            discriminator.requires_grad_()
            d_optimizer.zero_grad()
            d_loss = (self.loss(discriminator, images, 1) + self.loss(discriminator, fakes.detach(), 0)) / 2
            d_loss.backward()
            d_optimizer.step()
            return g_loss.item() + d_loss.item()

        return [generator, discriminator], step

    def loss(self, discriminator: Any, images: Tensor, target: int) -> Tensor:
        logits = discriminator(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    @torch.no_grad()
    def evaluate(self, nets: list[torch.nn.Module], images: Iterable[Tensor]) -> float:
        generator, discriminator = nets
        generator.eval()
        total = 0.0
        for batch in images:
            fakes = generator(torch.randn(len(batch), self.cfg.model.latent_dim, device=self.device))
            total += self.loss(discriminator, fakes, 1).item()
            total += (self.loss(discriminator, batch, 1) + self.loss(discriminator, fakes, 0)).item() / 2
        return total
