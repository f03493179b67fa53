"""Figures that arXiv 2410.01639 printed, for a look beside ours.

Fig. 4, read off its bars by pixel measurement (to about 0.05 for the deontological regret and 0.01
for the utilitarian one): Gemma-2-2b-it trained against tit-for-tat for 1,000 episodes, five runs,
tested with new labels against a random opponent. In the order IPD, ISH, ICN, BOS, ICD.
"""

GAMES = ("ipd", "ish", "icn", "bos", "icd")

# kind of regret -> agent -> a number per game
FIGURE_4 = {
    "deontological": {
        "No fine-tuning": (5.8, 5.8, 5.7, 5.8, 5.8),
        "game": (1.7, 1.65, 1.65, 1.65, 1.65),
        "deontological": (0.15, 0.15, 0.15, 0.15, 0.15),
        "utilitarian": (0.05, 0.05, 0.05, 0.05, 0.05),
        "game+deontological": (0.45, 0.45, 0.45, 0.3, 0.2),
        "game, then deontological": (0.4, 0.5, 0.45, 0.4, 0.45),
        "game, then utilitarian": (0.95, 0.95, 0.95, 0.95, 0.95),
    },
    "utilitarian": {
        "No fine-tuning": (0.975, 0.975, 0.96, 0.975, 0.98),
        "game": (0.25, 0.38, 0.24, 0.19, 0.25),
        "deontological": (0.14, 0.26, 0.10, 0.245, 0.42),
        "utilitarian": (0.10, 0.21, 0.04, 0.26, 0.49),
        "game+deontological": (0.19, 0.32, 0.16, 0.23, 0.38),
        "game, then deontological": (0.15, 0.28, 0.13, 0.23, 0.41),
        "game, then utilitarian": (0.18, 0.30, 0.16, 0.22, 0.36),
    },
}
