#!/bin/sh
# Creates a kind cluster of three nodes without a network, and installs Hawser in it. Wants kind, kubectl, docker or podman, and the
# image that `make image` writes, or another one as the first argument.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for image in "${1:-}" "$here"/../../target/image/hawser-*.tar; do
    # One that is named is meant, whether or not it is there.
    [ ! -f "$image" ] && [ -z "${1:-}" ] || break
done
if [ ! -f "$image" ]; then
    echo "no image in target/image: run make image first, or name the archive: $0 FILE" >&2
    exit 1
fi
for device in /dev/net/tun; do
    [ -c "$device" ] || { echo "$device is not there: modprobe tun" >&2; exit 1; }
done
kind create cluster --config "$here/cluster.yaml"
kind load image-archive --name hawser "$image"
kubectl --context kind-hawser apply -f "$here/.."
for set in mesh-agent mesh-tunnel; do
    kubectl --context kind-hawser -n hawser-system rollout status daemonset "$set" --timeout 5m
done
kubectl --context kind-hawser wait --for=condition=Ready nodes --all --timeout 5m
