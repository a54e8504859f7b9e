{{/* Two models in one pod, whose process serves both. The pod is that of the `flux` model; the other is its guest. */}}

{{/* The guest's name, or nothing: (list root models) */}}
{{- define "predictors.guest" -}}
{{- $models := last . -}}
{{- range (first .).Values.colocate -}}
{{- if ne (get $models .).format "flux" }}{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{/* The models that have pods, as JSON: with `colocate` the guest is not among them, and its host has its settings and its checkpoint. */}}
{{- define "predictors.models" -}}
{{- $models := include "predictors.rooms" . | fromJson -}}
{{- with .Values.colocate -}}
  {{- $guest := include "predictors.guest" (list $ $models) -}}
  {{- $host := without . $guest | first -}}
  {{- $at := get $models $guest -}}
  {{- $model := get $models $host -}}
  {{- include "predictors.overlay" (list $model.settings (deepCopy $at.settings)) -}}
  {{- $_ := set $model "colocated" (dict "name" $guest "uri" $at.storage.uri) -}}
  {{- $models = omit $models $guest -}}
{{- end -}}
{{ toJson $models }}
{{- end }}

{{/* True where a colocated checkpoint is downloaded: (list model) */}}
{{- define "predictors.downloadsGuest" -}}
{{- with (first .).colocated }}{{ if not (hasPrefix "pvc://" .uri) }}true{{ end }}{{ end -}}
{{- end }}

{{/* The guest's argument for the server, which KServe adds to the runtime's: (list model) */}}
{{- define "predictors.guestArgs" -}}
{{- with (first .).colocated }}
args:
  - --model
  - {{ printf "%s=%s" .name (hasPrefix "pvc://" .uri | ternary "/colocated" "/mnt/colocated") }}
{{- end }}
{{- end }}

{{/* Refusals: (list root models) */}}
{{- define "predictors.refuse.colocate" -}}
{{- $root := first . -}}{{- $models := last . -}}{{- $names := $root.Values.colocate -}}
{{- if ne (len $names) 2 -}}
{{- include "predictors.fail" (printf "colocate has %d models: name two, one of the format flux and one of qwen-vl" (len $names)) -}}
{{- end -}}
{{- range $names -}}
{{- if not (hasKey $models .) -}}
{{- include "predictors.fail" (printf "colocate names %s, which is no enabled model: there are %s" . (keys $models | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- $formats := list -}}
{{- range $names }}{{ $formats = append $formats (get $models .).format }}{{ end -}}
{{- if ne (len (uniq $formats)) 2 -}}
{{- include "predictors.fail" (printf "colocate names two models of the format %s: one of flux and one of qwen-vl take turns on a card, two of one kind take a card each" (first $formats)) -}}
{{- end -}}
{{- $guest := include "predictors.guest" . -}}
{{- $host := without $names $guest | first -}}
{{- $at := printf "models.%s" $guest -}}{{- $pod := printf "models.%s" $host -}}
{{- $said := get $root.Values.models $guest -}}
{{- if $said.image -}}
{{- include "predictors.fail" (printf "%s.image beside colocate: one process has one image and one ServingRuntime, those of %s" $at $pod) -}}
{{- end -}}
{{- range $key, $_ := omit $said "enabled" "format" "formatVersion" "storage" "settings" "gpuMemoryFraction" "canary" "autoscaling" "loras" -}}
{{- include "predictors.fail" (printf "%s.%s has no effect beside colocate, the pod is that of %s: say it there or in defaults" $at $key $pod) -}}
{{- end -}}
{{- range $key, $_ := omit (default dict $said.storage) "uri" -}}
{{- include "predictors.fail" (printf "%s.storage.%s has no effect beside colocate: say it in %s.storage, whose pod downloads both" $at $key $pod) -}}
{{- end -}}
{{- range $name := $names -}}
  {{- $m := get $models $name -}}
  {{- if $m.canary -}}
  {{- include "predictors.fail" (printf "models.%s.canary beside colocate: a canary would be a second pod with both models. Install it as a release of its own" $name) -}}
  {{- end -}}
  {{- if $m.autoscaling.enabled -}}
  {{- include "predictors.fail" (printf "models.%s.autoscaling.enabled beside colocate: the requests of one model would add pods with both. Leave it off, or give each model a pod" $name) -}}
  {{- end -}}
  {{- if $m.loras -}}
  {{- include "predictors.fail" (printf "models.%s.loras beside colocate: the chart gives adapters to pods of one model alone" $name) -}}
  {{- end -}}
{{- end -}}
{{- /* Helm would take over the Service that KServe made for the guest, and Kubernetes then delete it with its owner */ -}}
{{- if $root.Capabilities.APIVersions.Has "serving.kserve.io/v1beta1" -}}
{{- if lookup "serving.kserve.io/v1beta1" "InferenceService" (include "predictors.namespace" $root) $guest -}}
{{- include "predictors.fail" (printf "colocate: there still is the InferenceService %s, and the Service %s-predictor would go with it. Upgrade in two steps: first %s.enabled false and no colocate, and once it is gone this" $guest $guest $at) -}}
{{- end -}}
{{- end -}}
{{- $m := get $models $host -}}{{- $g := get $models $guest -}}
{{- if $m.cache.precompile -}}
{{- include "predictors.fail" (printf "%s.cache.precompile beside colocate: its Job would warm one of the two models. Leave it off: the first start fills the cache" $pod) -}}
{{- end -}}
{{- if $root.Values.localModelCache.enabled -}}
{{- include "predictors.fail" "localModelCache.enabled beside colocate: it caches a model that is downloaded alone; leave it off, or put the checkpoints on claims (pvc://)" -}}
{{- end -}}
{{- range $section, $keys := $g.settings -}}
{{- range $key, $value := $keys -}}
{{- $other := get (get $m.settings $section | default dict) $key -}}
{{- if and (hasKey (get $m.settings $section | default dict) $key) (ne (toJson $other) (toJson $value)) -}}
{{- include "predictors.fail" (printf "%s.settings.%s.%s is %s and that of %s is %s: one process has one value" $at $section $key (toJson $value) $pod (toJson $other)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "predictors.refuse.shares" (list $names $models $m) -}}
{{- if not (hasPrefix "pvc://" $g.storage.uri) -}}
  {{- if or (hasPrefix "oci" $g.storage.uri) (hasPrefix "oci" $m.storage.uri) -}}
  {{- include "predictors.fail" (printf "%s.storage.uri is %s beside %s: an image of a model is mounted alone; put one of the two on a claim (pvc://)" $at $g.storage.uri $m.storage.uri) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* Parts of the card's memory: (list names models host) */}}
{{- define "predictors.refuse.shares" -}}
{{- $models := index . 1 -}}{{- $sum := 0.0 -}}{{- $said := list -}}{{- $missing := list -}}
{{- range $name := first . -}}
  {{- $share := (get $models $name).gpuMemoryFraction | float64 -}}
  {{- $sum = addf $sum $share -}}
  {{- $said = append $said (printf "models.%s %v" $name $share) -}}
  {{- if eq $share 0.0 }}{{ $missing = append $missing (printf "models.%s.gpuMemoryFraction" $name) }}{{ end -}}
{{- end -}}
{{- $has := or (int (last .).gpu.count) (last .).resourceClaims -}}
{{- if and $has $missing -}}
{{- include "predictors.fail" (printf "colocate on a GPU needs %s: the part of the card's memory that the model may take, such as 0.6 for flux and 0.35 for qwen-vl" (join " and " $missing)) -}}
{{- end -}}
{{- if gt (round $sum 6) 1.0 -}}
{{- include "predictors.fail" (printf "gpuMemoryFraction of both colocated models is %v together, more than 1: %s" (round $sum 6) (join ", " $said)) -}}
{{- end -}}
{{- end }}
