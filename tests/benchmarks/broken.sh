#!/bin/sh
echo "Traceback" >&2
echo "MemoryError: none left" >&2
exit 3
