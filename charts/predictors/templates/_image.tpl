{{/* The image reference: (list root image). The global registry replaces one that the repository names. */}}
{{- define "predictors.image" -}}
{{- $root := first . -}}
{{- $image := last . -}}
{{- $repository := $image.repository -}}
{{- with $root.Values.global.imageRegistry -}}
  {{- $head := splitList "/" $repository | first -}}
  {{- if and (contains "/" $repository) (or (contains "." $head) (contains ":" $head) (eq $head "localhost")) -}}
    {{- $repository = trimPrefix (print $head "/") $repository -}}
  {{- end -}}
  {{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}
{{- end -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) }}
{{- end -}}
{{- end }}

{{/* The image of a model: its own values over `image`. A tag without a digest drops the digest of what is below: (list root over base?) */}}
{{- define "predictors.imageOver" -}}
{{- $below := deepCopy (index (append . (first .).Values.image) 2) -}}
{{- $over := index . 1 | default dict -}}
{{- if and $over.tag (not $over.digest) }}{{ $_ := set $below "digest" "" }}{{ end -}}
{{ merge (deepCopy $over) $below | toJson }}
{{- end }}

{{/* Secrets of registries, each a name or Kubernetes' `{name: ...}`, once each. */}}
{{- define "predictors.pullSecrets" -}}
{{- $names := list -}}
{{- range concat (default list .Values.image.pullSecrets) (default list .Values.imagePullSecrets) (default list .Values.global.imagePullSecrets) -}}
{{- $names = append $names (kindIs "string" . | ternary . (get (kindIs "map" . | ternary . dict) "name")) -}}
{{- end -}}
{{- with uniq $names }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | toYaml }}
  {{- end }}
{{- end }}
{{- end }}
