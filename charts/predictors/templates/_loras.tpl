{{/* Adapters of a model. KServe downloads several things by `storageUris`, the model's own then among them; of a claim
it mounts the root there, so that the chart mounts claims itself, the checkpoint's too. */}}

{{/* True where an adapter or a colocated checkpoint is downloaded beside the model: (list model) */}}
{{- define "predictors.downloadsLoras" -}}
{{- range (first .).loras }}{{ if not (hasPrefix "pvc://" .uri) }}true{{ end }}{{ end -}}
{{- include "predictors.downloadsGuest" . -}}
{{- end }}

{{/* `NAME=PATH,...` as the setting `server.loras` has it: (list model) */}}
{{- define "predictors.loraPaths" -}}
{{- $found := list -}}
{{- range $i, $lora := (first .).loras -}}
  {{- $folder := printf "%s/%d" (hasPrefix "pvc://" $lora.uri | ternary "/loras" "/mnt/loras") $i -}}
  {{- $found = append $found (printf "%s=%s%s" $lora.name $folder (default "" $lora.file | printf "/%s" | trimSuffix "/")) -}}
{{- end -}}
{{ join "," $found }}
{{- end }}

{{/* Where the predictor's files come from, if KServe downloads adapters: (list model) */}}
{{- define "predictors.storageUris" -}}
{{- $model := first . -}}
{{- if include "predictors.downloadsLoras" . }}
storageUris:
  {{- if not (include "predictors.mountsCheckpoint" .) }}
  - uri: {{ $model.storage.uri | toYaml }}
    mountPath: /mnt/models
  {{- end }}
  {{- range $i, $lora := $model.loras }}
  {{- if not (hasPrefix "pvc://" $lora.uri) }}
  - uri: {{ $lora.uri | toYaml }}
    mountPath: /mnt/loras/{{ $i }}
  {{- end }}
  {{- end }}
  {{- if include "predictors.downloadsGuest" . }}
  - uri: {{ $model.colocated.uri | toYaml }}
    mountPath: /mnt/colocated
  {{- end }}
{{- end }}
{{- end }}

{{/* Refusals: (list at root model) */}}
{{- define "predictors.refuse.loras" -}}
{{- $at := index . 0 -}}{{- $root := index . 1 -}}{{- $m := index . 2 -}}
{{- $names := list -}}
{{- range $i, $lora := $m.loras -}}
  {{- if has $lora.name $names -}}
  {{- include "predictors.fail" (printf "%s.loras[%d].name %q is taken by another adapter" $at $i $lora.name) -}}
  {{- end -}}
  {{- $names = append $names $lora.name -}}
  {{- if hasPrefix "oci" $lora.uri -}}
  {{- include "predictors.fail" (printf "%s.loras[%d].uri is %s: adapters come from hf:// or pvc://" $at $i $lora.uri) -}}
  {{- end -}}
{{- end -}}
{{- if include "predictors.downloadsLoras" (list $m) -}}
  {{- $advice := "put the adapters on a claim (pvc://)" -}}
  {{- if hasPrefix "oci" $m.storage.uri -}}
  {{- include "predictors.fail" (printf "%s.loras with hf:// need storage.uri hf:// or pvc://: %s" $at $advice) -}}
  {{- end -}}
  {{- if $m.cache.precompile -}}
  {{- include "predictors.fail" (printf "%s.cache.precompile needs adapters that its Job can mount: %s" $at $advice) -}}
  {{- end -}}
  {{- if $root.Values.localModelCache.enabled -}}
  {{- include "predictors.fail" (printf "%s.loras with hf:// exclude localModelCache.enabled, which caches a model that is downloaded alone: %s" $at $advice) -}}
  {{- end -}}
{{- end -}}
{{- end }}
