"""Run ``ppl-vae`` as ``python -m ppl_vae``."""

from .cli import main

if __name__ == "__main__":
    main()
