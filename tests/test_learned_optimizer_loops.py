"""LearnedOptimizer in the loops of others: Lightning, DDP, a gradient scaler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_loop import lstm, network, theta
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_l2l import LearnedOptimizer


def test_gradient_scaler_and_autocast(way):
    """A scale that overflows is lowered and its step skipped; otherwise the steps are those without a scaler."""
    model, plain, rule = network(), network(), lstm()
    optimizer, reference = LearnedOptimizer(model.parameters(), rule), LearnedOptimizer(plain.parameters(), rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    inputs, skipped = torch.randn(8, 200), 0
    for _ in range(12):
        optimizer.zero_grad()
        before = theta(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(inputs).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if torch.equal(theta(model), before):
            skipped += 1
            continue
        reference.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            plain(inputs).square().mean().backward()
            reference.step()
        torch.testing.assert_close(theta(model), theta(plain), rtol=1e-3, atol=1e-5)
    assert 0 < skipped < 12


class Regression(LightningModule):
    """Somebody's own LightningModule."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, _):
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        torch.manual_seed(0)
        optimizer = LearnedOptimizer(self.parameters(), lstm())
        return {"optimizer": optimizer, "lr_scheduler": CosineAnnealingLR(optimizer, 20)}


def test_a_lightning_module_trains_and_resumes(tmp_path):
    torch.manual_seed(5)
    data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
    start = Regression().state_dict()
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "gradient_clip_val": 1.0, "default_root_dir": tmp_path}
    results = []
    for epochs in ([4], [2, 4]):
        checkpoint = None
        for end in epochs:
            module = Regression()
            module.load_state_dict(start)
            trainer = Trainer(max_epochs=end, **settings)
            trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{end}.ckpt"
            trainer.save_checkpoint(checkpoint)
        results.append(theta(module))
    assert torch.equal(*results)
    assert not torch.equal(results[0], torch.cat([tensor.flatten() for tensor in start.values()]))


@pytest.mark.usefixtures("many_processes")
def test_two_processes_step_as_one(tmp_path):
    """Gradients of DDP are averaged, so both take the steps that one takes on the whole batch; so are losses.

    In a ``ZeroRedundancyOptimizer`` both agree as well, on steps that see the tensors of one process each.
    """
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path / "meet")]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
