Kernels are kept ready before anybody asks: an agent learns how many of which kind, up to ``--kernel-pool``, and creating one takes one of them.
