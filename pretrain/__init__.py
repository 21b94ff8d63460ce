"""From raw text to a pretrained checkpoint."""

import sys

if sys.argv[:1] == ["-m"]:  # Python looks for the module to run
    from pretrain.settings.modules import check_is_command

    check_is_command()
