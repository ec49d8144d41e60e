#!/usr/bin/env bash
# The manifests of k8s/.
#   scripts/kubernetes.sh render      writes k8s/rendered/, which the tests read; run it after every change of k8s/
#   scripts/kubernetes.sh check       says whether k8s/rendered/ is what the overlays give
#   scripts/kubernetes.sh validate    checks k8s/rendered/ against the API schemas of three Kubernetes versions; with
#                                     CRDS=FOLDER also by the CustomResourceDefinitions of KEDA and the Prometheus
#                                     operator that lie there
# The first two need kustomize, or kubectl, which has it built in (versions 5.5 and 5.7 render the same); the last needs
# python3 with pip.
set -euo pipefail
cd "$(dirname "$0")/.."

overlays=(cpu gpu local)
# The newest minor versions that kubernetes-validate knows.
versions=(1.35 1.36 1.37)
die() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }

build() {
  if command -v kustomize >/dev/null; then
    kustomize build "k8s/overlays/$1"
  elif command -v kubectl >/dev/null; then
    kubectl kustomize "k8s/overlays/$1"
  else
    die "neither kustomize nor kubectl is installed"
  fi
}

# The rendered files and what they were made of: where nobody can render, a test sees by it that one was changed.
hashes() {
  find k8s -type f ! -path 'k8s/rendered/HASHES*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
}

case "${1:-}" in
render)
  mkdir -p k8s/rendered
  for overlay in "${overlays[@]}"; do
    build "$overlay" >"k8s/rendered/$overlay.yaml.new"
    mv "k8s/rendered/$overlay.yaml.new" "k8s/rendered/$overlay.yaml"
  done
  hashes >k8s/rendered/HASHES.new
  mv k8s/rendered/HASHES.new k8s/rendered/HASHES
  ;;
check)
  for overlay in "${overlays[@]}"; do
    build "$overlay" | diff -u "k8s/rendered/$overlay.yaml" - ||
      die "k8s/rendered/$overlay.yaml is not what k8s/overlays/$overlay gives; run scripts/kubernetes.sh render"
  done
  ;;
validate)
  # 11 MB. Not a virtual environment: Debian's python3 makes none without a further package.
  packages=.cache/kubernetes/python
  [ -d "$packages/kubernetes_validate" ] ||
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$packages" \
      kubernetes-validate==1.37.0 >&2 ||
    die "pip could not install kubernetes-validate"
  PYTHONPATH="$packages" python3 tools/check_manifests.py k8s/rendered/*.yaml \
    --versions "${versions[@]}" ${CRDS:+--crds "$CRDS"}
  ;;
*) die "usage: scripts/kubernetes.sh render | check | validate" ;;
esac
