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

{{- define "predictors.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
