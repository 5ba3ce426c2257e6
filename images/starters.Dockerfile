# The last layer of every lab: the starter notebooks. Images stand on each other without it, so that a
# changed notebook rebuilds nothing else.
ARG BASE
FROM $BASE
COPY starters /opt/starters
