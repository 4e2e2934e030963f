"""A job on many machines: its input in parts, an engine per device, part files.

    source.py   lines of files -> parts, each known by where it lies
    worker.py   in an actor: a part in, a part file out
    folder.py   the output: whole part files, a manifest, what is done
    columns.py  results as columns of Parquet
    cluster.py  Ray: who runs where, and what comes back

A line is read, decoded and told as in the job on one machine; what a part file
holds depends on its lines and the settings alone. So it may be computed twice:
the second file is the first.
"""
