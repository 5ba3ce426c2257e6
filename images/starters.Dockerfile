# The last layer of every lab: the starter notebooks. Images stand on each other without it, so that a
# changed notebook rebuilds nothing else.
ARG BASE
FROM $BASE
# The starter notebooks; `start-lab` copies them into the home, which would hide them if they lay there.
COPY starters /opt/starters
